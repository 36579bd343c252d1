//! Style that can be checked is checked: who may import whom, the seam around `backoff`, the size of files, and that the
//! architecture page speaks of what exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders are layers, imports point down. A room, and what of the crate it may name besides itself. `cli`, `app`, `main`
/// and `bin` see everything.
const IMPORTS: [(&str, &[&str]); 12] = [
    ("domain", &[]),
    ("clock", &[]),
    ("logging", &[]),
    ("metrics", &[]),
    ("pause", &[]),
    ("simulator", &[]),
    ("worker", &["domain", "clock", "metrics", "pause"]),
    ("apns", &["domain", "worker::gateway", "clock", "metrics", "pause"]),
    ("amqp", &["worker::mailbox", "metrics", "pause"]),
    ("otlp", &["domain", "worker::timeline", "worker::trace", "metrics", "pause"]),
    ("admin", &["logging", "metrics"]),
    ("config", &["domain", "worker", "apns", "amqp", "otlp", "admin", "logging"]),
];

/// Rooms at the top, which may import every other.
const FREE: [&str; 5] = ["app", "cli", "main", "bin", "lib"];

/// A file this long has two owners.
const LINES_MAX: usize = 500;
/// Files that were too long when the rule came: path and length. It may only shrink, and it is empty.
const RATCHET: [(&str, usize); 0] = [];

#[test]
fn imports_point_down() {
    let mut mistakes = Vec::new();
    for (path, text) in sources("src") {
        let room = room(&path);
        if FREE.contains(&room.as_str()) {
            continue;
        }
        let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == room) else {
            mistakes.push(format!("{}: the room `{room}` is not in the import table", path.display()));
            continue;
        };
        for (line, import) in imports(&text) {
            let within = |outer: &str| import == outer || import.starts_with(&format!("{outer}::"));
            if !within(&room) && !allowed.iter().any(|outer| within(outer)) {
                mistakes.push(format!("{}:{line}: `{room}` may not import `{import}`", path.display()));
            }
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[test]
fn apns_and_amqp_never_meet() {
    for (path, text) in sources("src/apns").into_iter().chain(sources("src/amqp")) {
        let other = if path.starts_with("src/apns") { ["lapin", "amqp::"] } else { ["h2::", "apns::"] };
        for word in other {
            assert!(!code(&text).contains(word), "{} names {word}", path.display());
        }
    }
}

#[test]
fn backoff_is_named_in_one_file() {
    let files: Vec<PathBuf> = sources("src")
        .into_iter()
        .filter(|(_, text)| code(text).contains("backoff::"))
        .map(|(path, _)| path)
        .collect();
    assert_eq!(
        files.len(),
        1,
        "the crate `backoff` is named in {files:?}; one file is the seam to change it"
    );
}

#[test]
fn files_have_one_owner() {
    let mut mistakes = Vec::new();
    for (path, text) in sources("src").into_iter().chain(sources("tests")) {
        let lines = text.lines().count();
        let known = RATCHET.iter().find(|(name, _)| path == Path::new(name));
        let most = known.map_or(LINES_MAX, |(_, lines)| *lines);
        if lines > most {
            mistakes.push(format!("{} has {lines} lines, at most {most}", path.display()));
        }
    }
    assert!(mistakes.is_empty(), "split:\n{}", mistakes.join("\n"));
}

#[test]
fn the_architecture_page_names_what_exists() {
    let page = fs::read_to_string(root().join("src/README.md")).expect("the page is there");
    let files: Vec<PathBuf> =
        sources("src").into_iter().chain(sources("tests")).map(|(path, _)| path).collect();
    let all: String = sources("src").into_iter().map(|(_, text)| text).collect();
    let functions = functions(&all);
    let mut mistakes = Vec::new();
    for word in backticked(&page) {
        let is_path = word.strip_suffix(".rs").is_some() || (word.ends_with('/') && !word.contains(' '));
        if is_path && !word.starts_with('/') {
            let found = files.iter().any(|file| names_file(file, word)) || root().join(word).exists();
            if !found {
                mistakes.push(format!("no file `{word}`"));
            }
        } else if let Some(name) = word.strip_suffix("()") {
            let name = name.rsplit(['.', ':']).next().unwrap_or(name);
            if !functions.contains(name) {
                mistakes.push(format!("no function `{word}`"));
            }
        }
    }
    assert!(mistakes.is_empty(), "src/README.md: {}", mistakes.join(", "));
}

/// Whether `file` (`src/apns/pool.rs`) is meant by `word` (`apns/pool.rs`, `pool.rs`, `apns/`).
fn names_file(file: &Path, word: &str) -> bool {
    match word.strip_suffix('/') {
        Some(folder) => file.parent().is_some_and(|parent| parent.ends_with(folder)),
        None => file.ends_with(word),
    }
}

/// The first part of a path below `src`, without `.rs`.
fn room(path: &Path) -> String {
    let below = path.strip_prefix("src").expect("sources lie in src");
    let first = below.iter().next().expect("a file has a name").to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// What the code names of its own crate: `crate::a::b`, also in the braces of a `use`, with its line.
fn imports(text: &str) -> Vec<(usize, String)> {
    let code = code(text);
    let mut found = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        // `$crate::` is the same crate, too; `other_crate::` is not ours.
        if code[..start].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            continue;
        }
        let line = code[..start].matches('\n').count() + 1;
        for path in expand(&code[start + "crate::".len()..]) {
            found.push((line, path));
        }
    }
    found
}

/// The paths of a use tree that begins here: `a::{b, c::d}` is `a::b` and `a::c::d`. Only the first two steps matter.
fn expand(tree: &str) -> Vec<String> {
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    if let Some(inside) = tree.strip_prefix('{') {
        return split_braces(inside).iter().flat_map(|part| expand(part.trim())).collect();
    }
    let end = tree.find(|letter| !is_name(letter)).unwrap_or(tree.len());
    let (name, rest) = tree.split_at(end);
    let below = rest.strip_prefix("::").map(expand).unwrap_or_default();
    if below.is_empty() {
        return vec![name.to_owned()];
    }
    below
        .into_iter()
        .map(|path| if path.is_empty() { name.to_owned() } else { format!("{name}::{path}") })
        .collect()
}

/// The parts between the commas up to the brace that closes.
fn split_braces(inside: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts) = (0_usize, 0, Vec::new());
    for (place, letter) in inside.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&inside[begin..place]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inside[begin..place]);
                begin = place + 1;
            }
            _ => {}
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

/// The text without its comments, line by line as before. Good enough for sources without `//` in texts before code.
fn code(text: &str) -> String {
    let uncommented = |line: &str| match line.find("//") {
        Some(start) if !line[..start].contains('"') => line[..start].to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(|line| uncommented(line) + "\n").collect()
}

fn functions(text: &str) -> BTreeSet<&str> {
    text.match_indices("fn ")
        .map(|(start, _)| {
            let rest = &text[start + 3..];
            &rest
                [..rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(rest.len())]
        })
        .collect()
}

/// What stands between single backticks, outside of fenced blocks.
fn backticked(page: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for (place, block) in page.split("```").enumerate() {
        if place % 2 == 0 {
            words.extend(block.lines().flat_map(|line| line.split('`').skip(1).step_by(2)));
        }
    }
    words
}

/// Every Rust file below a folder with its text, by paths from the root, in order.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("sources can be read");
                let below = path.strip_prefix(root()).expect("it lies below the root").to_owned();
                found.push((below, text));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "there is no Rust file in {folder}");
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn use_trees_are_read_as_rust_reads_them() {
    let text = "use crate::{domain::{invite::Invite, push}, clock};\n// crate::nothing\nfn f() { $crate::amqp::dial() }\n";
    let found: Vec<String> = imports(text).into_iter().map(|(line, path)| format!("{line} {path}")).collect();
    assert_eq!(found, ["1 domain::invite::Invite", "1 domain::push", "1 clock", "3 amqp::dial"]);
}

#[test]
fn backticks_are_read_outside_of_blocks() {
    assert_eq!(backticked("a `b.rs` c\n```\n`d`\n```\n`e()` `f`"), ["b.rs", "e()", "f"]);
}
