//! Progress: a bar on a terminal, otherwise a line now and then.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use p2pfs::rpc::Progress;

/// How often a line is written where no bar can be.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How often it is worth making a text for a bar.
const BAR_EVERY: Duration = Duration::from_millis(50);

/// What is shown of the progress so far.
#[derive(Default)]
pub struct Shown {
    bar: Option<ProgressBar>,
    said: Option<(Instant, String)>,
    updated: Option<Instant>,
}

impl Shown {
    /// Shows how far it is.
    pub fn show(&mut self, progress: &Progress) {
        self.show_text(progress.ratio(), progress.to_string());
    }

    /// Shows `text`, and how much is done if that is known.
    pub fn show_text(&mut self, ratio: Option<(u64, u64)>, text: String) {
        if !std::io::stderr().is_terminal() {
            return self.say(text);
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::no_length();
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let template = match ratio {
            Some((done, of)) => {
                bar.set_length(of);
                bar.set_position(done);
                "{spinner} {bar:30} {wide_msg}"
            }
            None => "{spinner} {wide_msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(text);
    }

    /// Whether it is time to say something new; what is over at once says nothing.
    pub fn is_due(&mut self) -> bool {
        let every = if std::io::stderr().is_terminal() { BAR_EVERY } else { LINE_EVERY };
        let now = Instant::now();
        let due = now.duration_since(*self.updated.get_or_insert(now)) >= every;
        if due {
            self.updated = Some(now);
        }
        due
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn say(&mut self, text: String) {
        let now = Instant::now();
        let is_news = self
            .said
            .as_ref()
            .is_none_or(|(at, said)| now.duration_since(*at) >= LINE_EVERY && *said != text);
        if is_news {
            eprintln!("p2pfs: {text}");
            self.said = Some((now, text));
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.clear();
    }
}
