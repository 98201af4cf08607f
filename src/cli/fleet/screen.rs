//! A terminal that is drawn on in place and left as it was.
//!
//! It is the terminal's second screen, as pagers use it, so that nothing of the table stays behind; keys are read without
//! Enter and are not shown. They are read from `/dev/tty`, opened anew: standard input may be something else. Dropping
//! the screen, on any path, gives everything back.

use std::fs::File;
use std::io::{self, Read, Write};

use console::truncate_str;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio_util::sync::CancellationToken;

use crate::lifecycle::Lifecycle;

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// To the upper left corner; the rest of a line; the rest of the screen.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// For terminals that do not say.
const DEFAULT_SIZE: (usize, usize) = (24, 80);

/// How long a read of a key waits, in tenths of a second, so that its thread sees that it is to end.
const KEY_PATIENCE: u8 = 2;

/// The screen, while it is ours.
pub(super) struct Screen {
    keyboard: Option<Keyboard>,
    asked_to_end: CancellationToken,
}

/// The terminal as a source of keys, and how it was before.
struct Keyboard {
    terminal: File,
    before: Termios,
}

impl Screen {
    /// Takes the screen; keys are read on a thread of `lifecycle`. Without a terminal to read from, there are no keys,
    /// and signals end the program.
    pub(super) fn open(lifecycle: &Lifecycle) -> io::Result<Self> {
        let (keyboard, asked_to_end) = (Keyboard::open().ok(), CancellationToken::new());
        // From here on, the drop gives back what was taken.
        let screen = Screen { keyboard, asked_to_end };
        if let Some(keyboard) = &screen.keyboard {
            let (terminal, asked) = (keyboard.terminal.try_clone()?, screen.asked_to_end.clone());
            lifecycle.thread("keys", move |token| read_keys(terminal, &asked, &token))?;
        }
        write(ENTER)?;
        Ok(screen)
    }

    /// How many lines there are.
    pub(super) fn rows(&self) -> usize {
        size().0
    }

    /// Draws these from the top; what is too wide is cut.
    pub(super) fn draw(&self, lines: &[String]) -> io::Result<()> {
        let (rows, columns) = size();
        let shown: Vec<_> =
            lines.iter().take(rows).map(|line| format!("{}{CLEAR_LINE}", truncate_str(line, columns, "…"))).collect();
        write(&format!("{HOME}{}{CLEAR_BELOW}", shown.join("\r\n")))
    }

    /// Waits for a `q`.
    pub(super) async fn asked_to_end(&self) {
        self.asked_to_end.cancelled().await;
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Some(Keyboard { terminal, before }) = &self.keyboard {
            let _ = tcsetattr(terminal, OptionalActions::Now, before);
        }
        let _ = write(LEAVE);
    }
}

impl Keyboard {
    fn open() -> io::Result<Self> {
        let terminal = File::open("/dev/tty")?;
        let before = tcgetattr(&terminal)?;
        let mut now = before.clone();
        // Ctrl-C stays a signal.
        now.local_modes &= !(LocalModes::ICANON | LocalModes::ECHO);
        now.special_codes[SpecialCodeIndex::VMIN] = 0;
        now.special_codes[SpecialCodeIndex::VTIME] = KEY_PATIENCE;
        tcsetattr(&terminal, OptionalActions::Now, &now)?;
        Ok(Keyboard { terminal, before })
    }
}

fn read_keys(mut terminal: File, asked: &CancellationToken, token: &CancellationToken) {
    let mut key = [0];
    while !token.is_cancelled() {
        match terminal.read(&mut key) {
            Ok(1) if matches!(key[0], b'q' | b'Q') => return asked.cancel(),
            // Nothing within the patience; or the terminal has gone, and then this would never wait again.
            Ok(0) if tcgetattr(&terminal).is_err() => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Lines and columns.
fn size() -> (usize, usize) {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row.into(), size.ws_col.into()),
        _ => DEFAULT_SIZE,
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
