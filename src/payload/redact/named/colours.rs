//! What colours the text of a terminal (ECMA-48: ESC `[31m`, and ESC `[K` as `grep` writes it), around names and values; also
//! where JSON writes the ESC as `\u001b`.

use super::value::find;

/// Whether an escape sequence ends with it: a colour, or the rest of the line.
fn is_final(byte: u8) -> bool {
    matches!(byte, b'm' | b'K')
}

/// The first place from `at` on that is neither white nor a colour.
pub fn behind_blanks(bytes: &[u8], mut at: usize) -> usize {
    loop {
        let text = find(bytes, at, |byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
        at = behind(bytes, text);
        if at == text {
            return at;
        }
    }
}

/// Behind what begins at `at`.
pub fn behind(bytes: &[u8], mut at: usize) -> usize {
    const ESCAPE: &[u8] = b"u001b";
    let is_escape = |at: usize| bytes.get(at..at + ESCAPE.len()).is_some_and(|it| it.eq_ignore_ascii_case(ESCAPE));
    loop {
        let letter = find(bytes, at, |byte| byte != b'\\');
        let rest = match bytes.get(at) {
            Some(0x1b) => at + 1,
            Some(b'\\') if is_escape(letter) => letter + ESCAPE.len(),
            _ => return at,
        };
        let end = find(bytes, (rest + 1).min(bytes.len()), |byte| !byte.is_ascii_digit() && byte != b';');
        if bytes.get(rest) != Some(&b'[') || !bytes.get(end).copied().is_some_and(is_final) {
            return at;
        }
        at = end + 1;
    }
}

/// Before what ends at `end`.
pub fn before(bytes: &[u8], floor: usize, mut end: usize) -> usize {
    const ESCAPES: [&[u8]; 3] = [b"\x1b[", b"\\u001b[", b"\\u001B["];
    while end > floor && is_final(bytes[end - 1]) {
        let digits =
            bytes[floor..end - 1].iter().rev().take_while(|byte| byte.is_ascii_digit() || **byte == b';').count();
        let before = &bytes[floor..end - 1 - digits];
        let Some(escape) = ESCAPES.iter().find(|escape| before.ends_with(escape)) else { break };
        // In a string in a string it has more backslashes.
        let before = &before[..before.len() - escape.len()];
        end = floor + before.len() - before.iter().rev().take_while(|byte| **byte == b'\\').count();
    }
    end
}

/// How much of a name it is: of it, all but an ESC `before` may be letters of a name.
pub fn in_name(name: &[u8], before: Option<u8>) -> usize {
    let Some(open) = name.iter().rposition(|&byte| byte == b'[') else { return 0 };
    let is_escape =
        if open == 0 { before == Some(0x1b) } else { name[..open].to_ascii_lowercase().ends_with(b"u001b") };
    let end = find(name, open + 1, |byte| !byte.is_ascii_digit() && byte != b';');
    if is_escape && name.get(end).copied().is_some_and(is_final) { end + 1 } else { 0 }
}
