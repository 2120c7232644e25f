use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How long a plain log stays silent about a step that is under way.
const PLAIN_EVERY: Duration = Duration::from_secs(15);

/// Where progress goes: bars on a terminal, lines elsewhere, both on standard error; or nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ui {
    /// Bars that are drawn over.
    Bars,
    /// One line at the start and end of each step, and now and then between.
    Lines,
    /// Nothing (tests, and commands whose output is for programs).
    Silent,
}

impl Ui {
    /// What suits standard error.
    pub fn detect() -> Self {
        if std::io::stderr().is_terminal() { Self::Bars } else { Self::Lines }
    }

    /// A line for the user, outside of any step.
    pub fn say(self, text: &str) {
        if self != Self::Silent {
            eprintln!("{text}");
        }
    }

    /// Begins a step. `total` is the expected count of whatever [`Step::advance`] counts, 0 if there is none.
    pub fn step(self, name: &str, what: &str, total: u64) -> Step {
        let bar = (self == Self::Bars).then(|| {
            let bar = ProgressBar::new(total.max(1));
            let template = if total > 0 {
                "{prefix:>8} {bar:32} {percent:>3}% {elapsed} {wide_msg}"
            } else {
                "{prefix:>8} {spinner} {elapsed} {wide_msg}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(name.to_owned());
            bar.set_message(what.to_owned());
            bar
        });
        if self == Self::Lines {
            eprintln!("{name}: {what}");
        }
        let now = Instant::now();
        Step {
            ui: self,
            name: name.to_owned(),
            what: what.to_owned(),
            total,
            begun: now,
            bar,
            state: Mutex::new(State { count: 0, said: now }),
        }
    }
}

#[derive(Debug)]
struct State {
    count: u64,
    said: Instant,
}

/// One step of a build. Dropping it takes its bar away; [`Step::done`] says that it is done.
#[derive(Debug)]
pub struct Step {
    ui: Ui,
    name: String,
    what: String,
    total: u64,
    begun: Instant,
    bar: Option<ProgressBar>,
    state: Mutex<State>,
}

impl Step {
    /// One more is done. The estimate of the total may be wrong: more than that shows as 99 %.
    pub fn advance(&self) {
        let Ok(mut state) = self.state.lock() else { return };
        state.count += 1;
        if let Some(bar) = &self.bar {
            bar.set_position(state.count.min((self.total * 99 / 100).max(1)));
        }
        drop(state);
        self.plain();
    }

    /// Something moved (a line of output), though nothing was counted.
    pub fn tick(&self) {
        if let Some(bar) = &self.bar {
            bar.tick();
        }
        self.plain();
    }

    /// Says what it is at now.
    pub fn message(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
        self.plain();
    }

    fn plain(&self) {
        let Ok(mut state) = self.state.lock() else { return };
        if self.ui != Ui::Lines || state.said.elapsed() < PLAIN_EVERY {
            return;
        }
        state.said = Instant::now();
        let seconds = self.begun.elapsed().as_secs();
        match (state.count * 100).checked_div(self.total) {
            Some(percent) => eprintln!("{}: {} ({} %, {seconds} s)", self.name, self.what, percent.min(99)),
            None => eprintln!("{}: {} ({seconds} s)", self.name, self.what),
        }
    }

    /// The step is done.
    pub fn done(self) {
        let seconds = self.begun.elapsed().as_secs_f64();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.ui.say(&format!("{}: {} done in {seconds:.1} s", self.name, self.what));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
