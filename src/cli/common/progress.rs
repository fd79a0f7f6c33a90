//! Progress: a bar with rate and remaining time where standard error is a terminal, a plain line every few seconds elsewhere.

use std::fmt::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::output;

/// Time between two plain lines.
const INTERVAL: Duration = Duration::from_secs(5);
/// The bar, narrow enough for some words behind it on 80 columns.
const TEMPLATE: &str = "{prefix:<14} {bar:12.cyan/black} {pos:>5}/{len} {rate:>7} {eta:>4} left  {wide_msg}";

/// Progress of one part of a command.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    label: String,
    total: u64,
    first: u64,
    done: u64,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    /// Begins at `done` of `total`. The label should have the same width in all parts of a command.
    pub fn new(label: &str, total: u64, done: u64) -> Self {
        let bar = (!output::quiet() && output::terminal()).then(|| {
            let bar = output::BARS.add(ProgressBar::new(total).with_position(done));
            if let Some(style) = style() {
                bar.set_style(style);
            }
            bar.set_prefix(label.to_owned());
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        Self { bar, label: label.to_owned(), total, first: done, done, started: now, last_line: now }
    }

    /// Moves to `done`; `message` is only asked for when it is shown.
    pub fn set(&mut self, done: u64, message: impl FnOnce() -> String) {
        self.done = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(message());
        } else if self.last_line.elapsed() >= INTERVAL {
            self.last_line = Instant::now();
            let message = message();
            let gap = if message.is_empty() { "" } else { ", " };
            output::note(&format!("{}: {done}/{}, {}{gap}{message}", self.label, self.total, self.pace()));
        }
    }

    /// Where it is.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Rate and remaining time in words.
    fn pace(&self) -> String {
        let rate = (self.done - self.first.min(self.done)) as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        let left = self.total.saturating_sub(self.done) as f64 / rate.max(1e-9);
        format!("{}, {} left", pace(rate), duration(left))
    }

    /// Ends the part with one line.
    pub fn finish(self, message: &str) {
        let seconds = duration(self.started.elapsed().as_secs_f64());
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            output::BARS.remove(bar);
        }
        let gap = if message.is_empty() { "" } else { ": " };
        output::note(&format!("{}{gap}{message} ({seconds})", self.label));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            output::BARS.remove(&bar);
        }
    }
}

/// How a bar looks. The template is constant: a wrong one would fall back to the default style.
fn style() -> Option<ProgressStyle> {
    let rate = |state: &ProgressState, out: &mut dyn Write| {
        let _ = out.write_str(&pace(state.per_sec()));
    };
    Some(ProgressStyle::with_template(TEMPLATE).ok()?.with_key("rate", rate).progress_chars("━╸━"))
}

/// `66.3/s`.
fn pace(rate: f64) -> String {
    format!("{rate:.1}/s")
}

/// `41 s`, `3 min 20 s`, `2 h 5 min`.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() || s > 1e6 => "a long time".to_owned(),
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 99.5 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min {:02.0} s", (s / 60.0).floor(), (s % 60.0).floor()),
        s => format!("{:.0} h {:.0} min", (s / 3600.0).floor(), (s % 3600.0 / 60.0).floor()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::{ProgressDrawTarget, TermLike};
    use std::io::Result;
    use std::sync::{Arc, Mutex};

    /// A terminal of 80 columns that keeps what is written.
    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            80
        }

        fn move_cursor_up(&self, _: usize) -> Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> Result<()> {
            self.write_str(text)
        }

        fn write_str(&self, text: &str) -> Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }

        fn clear_line(&self) -> Result<()> {
            self.0.lock().unwrap().clear();
            Ok(())
        }

        fn flush(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn losses_fit_behind_a_bar() {
        let screen = Screen::default();
        let bar = ProgressBar::with_draw_target(Some(300), ProgressDrawTarget::term_like(Box::new(screen.clone())));
        bar.set_style(style().unwrap());
        bar.set_prefix("distillation");
        for position in [71, 153] {
            std::thread::sleep(Duration::from_millis(7));
            bar.set_position(position);
        }
        bar.set_message("D 1.93  G -0.02");
        bar.force_draw();
        let line = screen.0.lock().unwrap().clone();
        let rate = line.split_whitespace().find_map(|word| word.strip_suffix("/s")).unwrap();
        assert!(rate.split_once('.').is_some_and(|(_, decimals)| decimals.len() == 1), "{line}");
        assert!(line.contains("153/300") && line.contains("D 1.93  G -0.02"), "{line}");
    }

    #[test]
    fn durations_read_well() {
        let cases = [(0.04, "0.0 s"), (41.2, "41 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 5 min"), (f64::INFINITY, "a long time")];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }
}
