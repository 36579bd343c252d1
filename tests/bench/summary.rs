//! What a benchmark hands to the table of `tests/bench/run`.

/// One line of the table: what was measured, the figure, and the limit that it has, if any.
pub fn line(what: &str, figure: &str, limit: &str) {
    println!("summary: {what} | {figure} | {limit}");
}

/// The same figure of several rounds: its median and all of them.
pub fn rounds(what: &str, figures: &[f64], limit: &str) {
    let all: Vec<String> = figures.iter().map(|figure| format!("{figure:.2}")).collect();
    line(what, &format!("{:.2} (rounds: {})", median(figures), all.join(" ")), limit);
}

/// The one in the middle; of an even number the higher one.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A count to reckon with.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub fn float(count: u64) -> f64 {
    count as f64
}
