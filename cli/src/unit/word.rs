//! A setting's value in words: quotes, and the escapes of C.

/// What separates words.
const SPACE: &[char] = &[' ', '\t', '\n', '\r'];

/// Which backslashes mean something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Escapes {
    /// Those of C; an unknown one stays as it is written.
    OfC,
    /// Those of C alone.
    OnlyOfC,
    /// A backslash makes whatever follows it plain.
    Plain,
}

/// All words of a value, as `Environment=` and its like have them; systemd passes over all of one with a wrong escape.
pub(crate) fn words(text: &str) -> Result<Vec<String>, String> {
    let mut rest = text;
    let mut all = Vec::new();
    while let Some((word, after)) = first(rest, Escapes::OnlyOfC)? {
        all.push(word);
        rest = after;
    }
    Ok(all)
}

/// The words of a variable's value, as `$NAME` is replaced by: a quote that is not closed ends with the text.
pub(super) fn words_of_variable(text: &str) -> Vec<String> {
    let mut rest = text;
    let mut all = Vec::new();
    while let Ok(Some((word, after))) = word(rest, Escapes::Plain, true) {
        all.push(word);
        rest = after;
    }
    all
}

/// The first word, and what follows it. None where there is no more.
pub(super) fn first(text: &str, escapes: Escapes) -> Result<Option<(String, &str)>, String> {
    word(text, escapes, false)
}

fn word(text: &str, escapes: Escapes, lenient: bool) -> Result<Option<(String, &str)>, String> {
    let text = text.trim_start_matches(SPACE);
    if text.is_empty() {
        return Ok(None);
    }
    let mut word = Vec::new();
    let mut quote = None;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (_, '\\') if escapes != Escapes::Plain => {
                if let Some((bytes, length)) = of_c(rest) {
                    word.extend(bytes);
                    rest = &rest[length..];
                } else if escapes == Escapes::OnlyOfC {
                    return Err(format!(
                        "`\\{}` is no escape",
                        rest.chars().next().map_or(String::new(), String::from)
                    ));
                } else {
                    word.push(b'\\');
                    // What follows is plain, a quote too.
                    if let Some(next) = rest.chars().next() {
                        word.extend(next.encode_utf8(&mut [0; 4]).bytes());
                        rest = &rest[next.len_utf8()..];
                    }
                }
            }
            (_, '\\') => match rest.chars().next() {
                Some(next) => {
                    word.extend(next.encode_utf8(&mut [0; 4]).bytes());
                    rest = &rest[next.len_utf8()..];
                }
                None => word.push(b'\\'),
            },
            (None, c) if SPACE.contains(&c) => break,
            (_, c) => word.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    if quote.is_some() && !lenient {
        return Err("a quote is opened and not closed".to_owned());
    }
    let word = String::from_utf8(word).map_err(|_| "it is not UTF-8 text".to_owned())?;
    Ok(Some((word, rest.trim_start_matches(SPACE))))
}

/// What an escape stands for, and how many bytes it takes behind its backslash.
fn of_c(text: &str) -> Option<(Vec<u8>, usize)> {
    let plain = |byte: u8| Some((vec![byte], 1));
    let number = |from: usize, digits: usize, radix: u32| {
        let text = text.get(from..from + digits)?;
        if !text.chars().all(|c| c.is_digit(radix)) {
            return None;
        }
        u32::from_str_radix(text, radix).ok().filter(|number| *number != 0)
    };
    let byte = |number: u32, length: usize| Some((vec![u8::try_from(number).ok()?], length));
    let character =
        |number: u32, length: usize| Some((char::from_u32(number)?.to_string().into_bytes(), length));
    match text.chars().next()? {
        'a' => plain(7),
        'b' => plain(8),
        'f' => plain(12),
        'n' => plain(b'\n'),
        'r' => plain(b'\r'),
        't' => plain(b'\t'),
        'v' => plain(11),
        's' => plain(b' '),
        c @ ('\\' | '"' | '\'') => plain(c as u8),
        'x' => byte(number(1, 2, 16)?, 3),
        'u' => character(number(1, 4, 16)?, 5),
        'U' => character(number(1, 8, 16)?, 9),
        '0'..='7' => byte(number(0, 3, 8)?, 3),
        _ => None,
    }
}
