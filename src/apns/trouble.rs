//! Which troubles with new connections the log has already: a long outage is told once, not at each dial.

/// Different ones at most. One name has some ten addresses, each with a sentence of its own.
const TOLD_MAX: usize = 32;

/// The troubles since the last connection that was opened.
#[derive(Debug, Default)]
pub(super) struct Troubles(Vec<String>);

impl Troubles {
    /// Notes one; true where it is worth a line.
    pub(super) fn is_news(&mut self, trouble: &str) -> bool {
        if self.0.len() >= TOLD_MAX || self.0.iter().any(|told| told == trouble) {
            return false;
        }
        self.0.push(trouble.to_owned());
        true
    }

    /// A connection was opened: what comes after it is told again.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_is_told_once_however_they_take_turns() {
        let mut troubles = Troubles::default();
        let told = |troubles: &mut Troubles| {
            (0..30).filter(|dial| troubles.is_news(&format!("192.0.2.{} is silent", dial % 3))).count()
        };
        assert_eq!(told(&mut troubles), 3);
        assert_eq!(told(&mut troubles), 0);
        troubles.forget();
        assert_eq!(told(&mut troubles), 3);
    }

    #[test]
    fn what_differs_each_time_is_told_so_many_times_at_most() {
        let mut troubles = Troubles::default();
        let told = (0..1000).filter(|dial| troubles.is_news(&format!("refused as number {dial}"))).count();
        assert_eq!(told, TOLD_MAX);
    }
}
