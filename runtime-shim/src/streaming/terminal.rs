//! What stands between a person's keys and a Wasm guest: the line discipline that a kernel's terminal has in its usual mode.
//!
//! The client's own terminal is raw, so somebody has to echo, to let a line be corrected before it is sent, and to know Ctrl-C and
//! Ctrl-D. WASI has no way to ask for another mode. Pure: keys in, [`Typed`] out.

/// A line longer than this rings the bell, as on Linux.
const LINE_BYTES_MAX: usize = 4096;

const CTRL_C: u8 = 0x03;
const CTRL_D: u8 = 0x04;
const BACKSPACE: u8 = 0x08;
const CTRL_U: u8 = 0x15;
const CTRL_W: u8 = 0x17;
const CTRL_BACKSLASH: u8 = 0x1c;
const DELETE: u8 = 0x7f;

/// What some keys amount to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Typed {
    /// For the guest's stdin: whole lines.
    pub(crate) input: Vec<u8>,
    /// For the person to see.
    pub(crate) echo: Vec<u8>,
    /// Ctrl-D on an empty line: the end of stdin.
    pub(crate) end: bool,
    /// Ctrl-C or Ctrl-\.
    pub(crate) interrupt: bool,
}

/// One terminal.
#[derive(Debug, Default)]
pub(crate) struct LineDiscipline {
    line: Vec<u8>,
}

impl LineDiscipline {
    /// Takes keys as they were typed.
    pub(crate) fn keys(&mut self, keys: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for key in keys {
            self.key(*key, &mut typed);
        }
        typed
    }

    fn key(&mut self, key: u8, typed: &mut Typed) {
        match key {
            b'\r' | b'\n' => {
                self.line.push(b'\n');
                typed.input.append(&mut self.line);
                typed.echo.push(b'\n');
            }
            CTRL_D if self.line.is_empty() => typed.end = true,
            CTRL_D => typed.input.append(&mut self.line),
            CTRL_C | CTRL_BACKSLASH => {
                self.line.clear();
                typed.echo.extend([b'^', key ^ 0x40, b'\n']);
                typed.interrupt = true;
            }
            BACKSPACE | DELETE => {
                self.erase(typed);
            }
            CTRL_U => while self.erase(typed) {},
            CTRL_W => {
                while self.line.last() == Some(&b' ') && self.erase(typed) {}
                while self.line.last().is_some_and(|last| *last != b' ') && self.erase(typed) {}
            }
            _ if self.line.len() >= LINE_BYTES_MAX => typed.echo.push(0x07),
            b'\t' => self.put(key, &[key], typed),
            0..0x20 => self.put(key, &[b'^', key ^ 0x40], typed),
            _ => self.put(key, &[key], typed),
        }
    }

    fn put(&mut self, key: u8, echo: &[u8], typed: &mut Typed) {
        self.line.push(key);
        typed.echo.extend(echo);
    }

    /// Takes back one character, all bytes of it. False when there is none.
    fn erase(&mut self, typed: &mut Typed) -> bool {
        let Some(mut last) = self.line.pop() else {
            return false;
        };
        while (0x80..0xc0).contains(&last) {
            match self.line.pop() {
                Some(byte) => last = byte,
                None => break,
            }
        }
        let columns = if last < 0x20 && last != b'\t' { 2 } else { 1 };
        for _ in 0..columns {
            typed.echo.extend(b"\x08 \x08");
        }
        true
    }
}

/// Lines on a raw terminal end in carriage return and newline.
pub(crate) fn with_carriage_returns(piece: &mut Vec<u8>) {
    if piece.contains(&b'\n') {
        let lines = piece.iter().filter(|byte| **byte == b'\n').count();
        let mut out = Vec::with_capacity(piece.len() + lines);
        for byte in piece.iter() {
            if *byte == b'\n' {
                out.push(b'\r');
            }
            out.push(*byte);
        }
        *piece = out;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_lines() {
        let cases: [(&str, &[u8], &[u8], &str); 9] = [
            ("return ends a line", b"ls\r", b"ls\n", "ls\n"),
            ("nothing is sent before that", b"ls", b"", "ls"),
            ("backspace", b"lx\x7fs\r", b"ls\n", "lx\x08 \x08s\n"),
            ("backspace on an empty line", b"\x7fa\r", b"a\n", "a\n"),
            (
                "a character of two bytes goes at once",
                "aü\u{7f}\r".as_bytes(),
                b"a\n",
                "aü\u{8} \u{8}\n",
            ),
            (
                "the line",
                b"abc\x15x\r",
                b"x\n",
                "abc\x08 \x08\x08 \x08\x08 \x08x\n",
            ),
            (
                "the word",
                b"a bc \x17d\r",
                b"a d\n",
                "a bc \x08 \x08\x08 \x08\x08 \x08d\n",
            ),
            (
                "control characters are shown",
                b"\x1b[A\r",
                b"\x1b[A\n",
                "^[[A\n",
            ),
            ("Ctrl-D sends what there is", b"ab\x04", b"ab", "ab"),
        ];
        for (case, keys, input, echo) in cases {
            let typed = LineDiscipline::default().keys(keys);
            assert_eq!(typed.input, input, "case: {case}");
            assert_eq!(String::from_utf8_lossy(&typed.echo), echo, "case: {case}");
            assert!(!typed.end && !typed.interrupt, "case: {case}");
        }
    }

    #[test]
    fn the_end_and_the_interrupt() {
        let mut terminal = LineDiscipline::default();
        assert!(terminal.keys(b"\x04").end);
        let typed = terminal.keys(b"half\x03");
        assert!(typed.interrupt && typed.input.is_empty());
        assert_eq!(typed.echo, b"half^C\n");
        assert_eq!(terminal.keys(b"\r").input, b"\n", "the half line is gone");
    }

    #[test]
    fn a_line_has_an_end() {
        let mut terminal = LineDiscipline::default();
        let typed = terminal.keys(&[b'x'; LINE_BYTES_MAX + 3]);
        assert!(typed.echo.ends_with(&[7, 7, 7]));
        assert_eq!(terminal.keys(b"\r").input.len(), LINE_BYTES_MAX + 1);
    }

    #[test]
    fn carriage_returns() {
        let mut piece = b"a\nb\n".to_vec();
        with_carriage_returns(&mut piece);
        assert_eq!(piece, b"a\r\nb\r\n");
    }
}
