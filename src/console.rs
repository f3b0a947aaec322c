//! What `cox up` says on the terminal: lines that stay, and a few below them that are redrawn while work goes on.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;

/// The terminal, or whatever standard output is: live lines are drawn only on a terminal, elsewhere each change is a line.
#[derive(Debug)]
pub(crate) struct Console {
    terminal: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    live: Vec<String>,
    /// Live lines now on the screen, to go back over.
    drawn: usize,
}

impl Console {
    pub(crate) fn stdout() -> Self {
        Self {
            terminal: std::io::stdout().is_terminal(),
            state: Mutex::default(),
        }
    }

    /// Prints a line that stays.
    pub(crate) fn line(&self, text: &str) {
        self.draw(|state, screen| {
            state.erase(screen);
            screen.push_str(text);
            screen.push('\n');
            state.redraw(screen);
        });
    }

    /// Shows `text` as live line number `index`, or as a line of its own where nothing can be redrawn.
    pub(crate) fn live(&self, index: usize, text: &str) {
        let terminal = self.terminal;
        self.draw(|state, screen| {
            if state.live.len() <= index {
                state.live.resize(index + 1, String::new());
            }
            if state.live[index] == text {
                return;
            }
            state.live[index] = text.to_owned();
            if terminal {
                state.erase(screen);
                state.redraw(screen);
            } else {
                screen.push_str(text);
                screen.push('\n');
            }
        });
    }

    /// Leaves the live lines where they are; what follows is printed below them.
    pub(crate) fn settle(&self) {
        let mut state = self.lock();
        state.live.clear();
        state.drawn = 0;
    }

    fn draw(&self, compose: impl FnOnce(&mut State, &mut String)) {
        let mut screen = String::new();
        let mut state = self.lock();
        compose(&mut state, &mut screen);
        if !self.terminal {
            state.drawn = 0;
        }
        let mut out = std::io::stdout().lock();
        // A closed pipe (`cox up | head`) is not worth dying for: the cluster goes on without its words.
        out.write_all(screen.as_bytes())
            .and_then(|()| out.flush())
            .ok();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn erase(&mut self, screen: &mut String) {
        if self.drawn > 0 {
            screen.push_str(&format!("\x1b[{}A\x1b[J", self.drawn));
            self.drawn = 0;
        }
    }

    fn redraw(&mut self, screen: &mut String) {
        for line in &self.live {
            screen.push_str(line);
            screen.push('\n');
        }
        self.drawn = self.live.len();
    }
}
