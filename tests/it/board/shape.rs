//! The shape of the dashboard: what Grafana takes in silence and shows badly, or not at all.

use std::collections::BTreeSet;

use serde_json::Value;
use tokio::process::Command;

use super::dashboard::{Dashboard, Panel, list, text};
use super::day::TILES;
use crate::client::python;

/// The kinds of panels that are used: none of them is on its way out.
const KINDS: [&str; 5] = ["row", "stat", "timeseries", "heatmap", "table"];
/// Grafana's grid.
const COLUMNS: u64 = 24;
/// Rates are taken over what fits the scrapes and the time shown. The last three minutes are for what a trouble leaves behind: calls
/// that waited through it; ten are for what happens at once and is not over then, such as a file that was refused.
const WINDOWS: [&str; 5] = ["[$__rate_interval]", "[$__range]", "[3m]", "[3m:5s]", "[10m]"];
/// The alerts that descriptions lead to.
const RUNBOOK: &str = include_str!("../../../charts/ringcast/RUNBOOK.md");

#[test]
fn every_panel_is_whole() {
    let board = Dashboard::read();
    let declared: Vec<&str> = board.variables().iter().map(|variable| text(&variable["name"])).collect();
    let mut mistakes = Vec::new();
    let mut ids = BTreeSet::new();
    let mut titles = BTreeSet::new();
    for panel in board.panels() {
        let mut check = |is_so: bool, what: &str| {
            if !is_so {
                mistakes.push(format!("{:?} {what}", panel.title()));
            }
        };
        check(ids.insert(panel.id()), "has the id of another");
        check(!panel.title().is_empty() && titles.insert(panel.title()), "has no title of its own");
        check(KINDS.contains(&panel.kind()), "is of no kind that is used here");
        if panel.kind() == "row" {
            continue;
        }
        let defaults = &panel.0["fieldConfig"]["defaults"];
        check(text(&panel.0["description"]).ends_with('.'), "has no description");
        check(!text(&defaults["unit"]).is_empty(), "has no unit");
        check(
            panel.0["datasource"]["uid"] == "${datasource}",
            "does not ask the data source that was chosen",
        );
        check(!panel.targets().is_empty(), "asks nothing");
        if panel.kind() == "timeseries" {
            let is_logarithmic = defaults["custom"]["scaleDistribution"]["type"] == "log";
            check(is_logarithmic || defaults["min"] == 0, "has an axis that does not begin at 0");
        }
        if panel.kind() == "stat" {
            check(list(&defaults["thresholds"]["steps"]).len() > 1, "has no thresholds");
            check(defaults["noValue"].is_string(), "says nothing where there is no value");
            // What is true no more must not stand there as if it were.
            let is_now = panel.0["options"]["reduceOptions"]["calcs"] == serde_json::json!(["last"]);
            check(is_now || !is_first(panel), "shows an older value where there is none now");
            let says_so = |mapping: &Value| {
                let options = &mapping["options"];
                options["match"] == "null+nan"
                    && options["result"]["text"] == defaults["noValue"]
                    && options["result"]["color"] != "green"
            };
            check(
                !is_now || list(&defaults["mappings"]).iter().any(says_so),
                "is green where there is no value",
            );
        }
        for target in panel.targets() {
            check(!text(&target["legendFormat"]).is_empty(), "has a query without a legend");
        }
    }
    for (place, expr) in board.expressions() {
        let windows = expr.matches('[').count();
        let known: usize = WINDOWS.iter().map(|window| expr.matches(window).count()).sum();
        if windows != known {
            mistakes.push(format!("{place}: a window of its own"));
        }
        for family in expr.split('{').skip(1) {
            if !family.starts_with(r#"namespace=~"$namespace",job=~"$job",instance=~"$instance""#) {
                mistakes.push(format!("{place}: not only of the workers that were chosen"));
            }
        }
        for word in expr.split('$').skip(1) {
            let name: String =
                word.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect();
            if !declared.contains(&name.as_str()) && !name.starts_with("__") {
                mistakes.push(format!("{place}: ${name} is not declared"));
            }
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    assert_eq!(
        (text(&board.json["uid"]), text(&board.json["title"])),
        ("ringcast", "Ringcast"),
        "links stay good"
    );
    assert_eq!(board.json["schemaVersion"], 41, "of Grafana 11.6, whose types check it");
}

#[test]
fn panels_lie_side_by_side() {
    let board = Dashboard::read();
    let mut taken = BTreeSet::new();
    for panel in board.panels() {
        let [x, y, w, h] = place(panel);
        assert!(x + w <= COLUMNS && w > 0 && h > 0, "{:?} is outside of the grid", panel.title());
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{:?} lies on another", panel.title());
        }
    }
    let height = taken.iter().map(|(_, y)| y + 1).max().expect("there are panels");
    assert_eq!(taken.len() as u64, COLUMNS * height, "there are holes");
}

/// `grafana.py` reads it by the types of Grafana's own kit and writes it again.
#[tokio::test]
async fn grafanas_own_types_know_every_field() {
    let root = env!("CARGO_MANIFEST_DIR");
    let args = ["tests/it/board/grafana.py", "charts/ringcast/dashboard.json"];
    let ended = Command::new(python()).current_dir(root).args(args).output().await.expect("Python starts");
    let said = [ended.stdout, ended.stderr].concat();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn each_tile_leads_to_the_runbook() {
    for panel in Dashboard::read().panels() {
        let description = text(&panel.0["description"]);
        let words = description.split(|letter: char| !letter.is_ascii_alphanumeric());
        let is_alert = |word: &&str| word.strip_prefix("Ringcast").is_some_and(|rest| !rest.is_empty());
        let alerts: Vec<&str> = words.filter(is_alert).collect();
        for alert in &alerts {
            let heading = format!("\n### {alert}\n");
            assert!(RUNBOOK.contains(&heading), "{:?} names {alert}, which has no section", panel.title());
        }
        assert!(!TILES.contains(&panel.title()) || !alerts.is_empty(), "{:?} names no alert", panel.title());
    }
}

/// It lies in the first two lines: what is looked at first.
fn is_first(panel: Panel<'_>) -> bool {
    place(panel)[1] < 8
}

fn place(panel: Panel<'_>) -> [u64; 4] {
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{:?} has no place", panel.title()));
    ["x", "y", "w", "h"].map(|side| number(&panel.0["gridPos"][side]))
}
