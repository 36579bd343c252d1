//! The layers as one: what holds, where it was set, what was wrong, and which keys nobody asked for.

use std::collections::{BTreeMap, BTreeSet};

use super::mistake::Mistake;
use super::section::Section;
use super::source::{Entry, Layer, NAME, Origin, Path, Value};

/// The app in `config/default.toml` whose values are every app's defaults.
const TEMPLATE: &str = "acme";

/// The layers, what was asked for, and what was wrong.
pub(super) struct Reader {
    defaults: Layer,
    file: Layer,
    environment: Layer,
    keys: BTreeSet<Path>,
    sections: BTreeSet<Path>,
    mistakes: Vec<Mistake>,
    strays: Vec<String>,
}

impl Reader {
    /// `mistakes`: what was wrong before.
    pub(super) fn new(file: Layer, environment: Layer, mistakes: Vec<Mistake>) -> Self {
        Self {
            defaults: Layer::default_values(),
            file,
            environment,
            keys: BTreeSet::new(),
            sections: BTreeSet::new(),
            mistakes,
            strays: Vec::new(),
        }
    }

    /// `strays`: variables that may be meant for settings, and are not named so.
    pub(super) fn beside(self, strays: Vec<String>) -> Self {
        Self { strays, ..self }
    }

    /// The table at that path. It always exists, even where no layer names it.
    pub(super) fn section(&mut self, names: &[&str]) -> Section<'_> {
        let path = Path(names.iter().map(|name| (*name).to_owned()).collect());
        for length in 1..=path.0.len() {
            self.sections.insert(Path(path.0[..length].to_vec()));
        }
        Section::new(self, path, false)
    }

    /// A table that may be left out: whether the file or the environment began it, and the table. Left out, it misses
    /// no key.
    pub(super) fn optional_section(&mut self, names: &[&str]) -> (bool, Section<'_>) {
        let path = self.section(names).path().clone();
        let begins = |(key, entry): (&Path, &Entry)| {
            (*key == path && entry.value == Value::Table) || key.is_below(&path)
        };
        let present = self.file.0.iter().chain(&self.environment.0).any(begins);
        (present, Section::new(self, path, !present))
    }

    /// The names of the tables below a table in the file and the environment, each once, in order.
    pub(super) fn tables_below(&self, name: &str) -> BTreeSet<String> {
        let entries = self.file.0.iter().chain(&self.environment.0);
        entries
            .filter(|(path, entry)| {
                path.0[0] == name && (path.0.len() > 2 || (path.0.len() == 2 && entry.value == Value::Table))
            })
            .map(|(path, _)| path.0[1].clone())
            .collect()
    }

    /// What the file and the environment set, tables left out.
    pub(super) fn written(&self) -> BTreeMap<Path, Value> {
        let entries = self.file.0.iter().chain(&self.environment.0);
        let values = entries.filter(|(_, entry)| entry.value != Value::Table);
        values.map(|(path, entry)| (path.clone(), entry.value.clone())).collect()
    }

    /// Says that a key exists.
    pub(super) fn know(&mut self, path: &Path) {
        self.keys.insert(path.clone());
    }

    /// Records a mistake about a key or a table, at the place that set it.
    pub(super) fn refuse(&mut self, path: &Path, what: &str) {
        let origin = self.origin(path);
        self.refuse_at(path, &origin, what);
    }

    /// Records a mistake about a key or a table.
    pub(super) fn refuse_at(&mut self, path: &Path, origin: &Origin, what: &str) {
        self.mistakes.push(Mistake::at(path, origin, what));
    }

    /// What holds for a key; `None` where it was not set and has no default.
    pub(super) fn lookup(&self, path: &Path) -> Option<&Entry> {
        let set = self.environment.0.get(path).or_else(|| self.file.0.get(path));
        set.or_else(|| self.default_entry(path))
    }

    /// What `config/default.toml` says of a key.
    pub(super) fn default_entry(&self, path: &Path) -> Option<&Entry> {
        let mut path = path.clone();
        if path.0.len() > 2 && path.0[0] == "apps" {
            TEMPLATE.clone_into(&mut path.0[1]);
        }
        self.defaults.0.get(&path)
    }

    /// Where a key or table was set: a table that only its keys name where the first of them was, one that nothing names
    /// where the table around it was.
    pub(super) fn origin(&self, path: &Path) -> Origin {
        if let Some(entry) = self.lookup(path).filter(|entry| entry.value != Value::Table) {
            return entry.origin.clone();
        }
        let layers = [&self.file.0, &self.environment.0];
        let mut table = path.clone();
        while !table.0.is_empty() {
            let exact = layers.iter().find_map(|layer| layer.get(&table));
            let below = || layers.iter().flat_map(|layer| layer.iter()).find(|(key, _)| key.is_below(&table));
            if let Some(entry) = exact.or_else(|| below().map(|(_, entry)| entry)) {
                return entry.origin.clone();
            }
            table.0.pop();
        }
        Origin::Nowhere
    }

    /// Ends the reading with every mistake, among them the keys that nobody asked for.
    pub(super) fn finish(mut self) -> Vec<Mistake> {
        let mut refused: Vec<Path> = Vec::new();
        let mut unknown = Vec::new();
        for (path, entry) in self.file.0.iter().chain(&self.environment.0) {
            let table = entry.value == Value::Table;
            let known = self.keys.contains(path) || (table && self.sections.contains(path));
            // What lies in a table that was refused, or that stands where a value should, was judged with it.
            let judged = |ancestor: &Path| path.is_below(ancestor);
            if known || refused.iter().any(judged) || self.keys.iter().any(judged) {
                continue;
            }
            if table {
                refused.push(path.clone());
            }
            let app = path.0.len() == 2 && path.0[0] == "apps";
            let what = if self.sections.contains(path) || app {
                format!("is a section, not {}; set the keys in it", entry.value.kind())
            } else {
                self.unknown(path, table)
            };
            unknown.push(Mistake::at(path, &entry.origin, &what));
        }
        unknown.extend(self.strays.iter().filter_map(|variable| self.mistyped(variable)));
        self.mistakes.append(&mut unknown);
        self.mistakes
    }

    /// A variable that would be a setting but for its underscores: `RINGCAST_AMQP__URI`, `RINGCAST_AMQP_URI`.
    fn mistyped(&self, variable: &str) -> Option<Mistake> {
        let rest = variable.strip_prefix(NAME)?.to_lowercase();
        let (is_near, joined) = (rest.contains("__"), rest.replace("__", "_"));
        let key = self.keys.iter().find(|key| key.0.join("_") == joined).cloned().or_else(|| {
            let path = Path(rest.split("__").map(str::to_owned).collect());
            let section = Path(vec![path.0[0].clone()]);
            (is_near && self.sections.contains(&section)).then_some(path)
        })?;
        let right = key.0.join("__").to_uppercase();
        let origin = Origin::Environment { variable: variable.to_owned() };
        Some(Mistake::at(&key, &origin, &format!("is not read under this name; write {NAME}_{right}")))
    }

    /// What to say about a key or table that nobody asked for: the nearest that exists, or those beside it.
    fn unknown(&self, path: &Path, table: bool) -> String {
        let (candidates, noun) = if table { (&self.sections, "section") } else { (&self.keys, "key") };
        let written = path.to_string();
        let nearest = candidates
            .iter()
            .map(|candidate| {
                let same_name = !table && candidate.0.last() == path.0.last();
                (!same_name, distance(&written, &candidate.to_string()), candidate)
            })
            .min();
        if let Some((other_name, distance, nearest)) = nearest
            && (!other_name || distance <= (path.0.last().map_or(0, String::len) / 2).clamp(1, 3))
        {
            return format!("is not a known {noun}; did you mean {nearest}?");
        }
        let parent = Path(path.0[..path.0.len() - 1].to_vec());
        let beside: Vec<&str> = candidates
            .iter()
            .filter(|candidate| candidate.0.len() == path.0.len() && candidate.is_below(&parent))
            .filter_map(|candidate| candidate.0.last().map(String::as_str))
            .collect();
        if beside.is_empty() {
            return format!("is not a known {noun}; remove it");
        }
        format!("is not a known {noun}; known here are {}", beside.join(", "))
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> &BTreeSet<Path> {
        &self.keys
    }
}

/// How many letters must be added, dropped or changed to come from one word to the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (column, wanted) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *wanted);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_of_words() {
        assert_eq!(distance("prefetch", "prefetch"), 0);
        assert_eq!(distance("prefech", "prefetch"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
