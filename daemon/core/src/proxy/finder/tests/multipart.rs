use super::*;

const BOUNDARY: &str = "--b_9";
const DELIMITER: &[u8] = b"\r\n----b_9";

fn form() -> Finder {
    Finder::multipart(BOUNDARY).unwrap()
}

/// A part, and what it says of `model`: nothing, or a value; None is one that is no UTF-8.
#[derive(Debug, Clone)]
struct Part {
    headers: String,
    content: Vec<u8>,
    is_model: bool,
}

/// Bytes that nearly contain the boundary.
fn content() -> impl Strategy<Value = Vec<u8>> {
    const NEARLY: &[&[u8]] = &[
        b"\r\n",
        b"\r",
        b"\n",
        b"--",
        b"\r\n--",
        b"----b_9",
        b"--b_9",
        b"\r\n----b_",
        b"\r\r\n",
        b"a",
        b"=",
        b"\xff",
    ];
    prop_oneof![
        4 => Just(b"a".to_vec()),
        1 => prop::sample::select(&["b", "", "ä😀"][..]).prop_map(|it| it.as_bytes().to_vec()),
        1 => (510usize..515).prop_map(|n| vec![b'x'; n]),
        3 => soup(NEARLY, 8),
    ]
    .prop_filter("holds the boundary", |content| {
        let written = [b"\r\n", content.as_slice(), DELIMITER].concat();
        written.windows(DELIMITER.len()).position(|at| at == DELIMITER) == Some(content.len() + 2)
    })
}

fn part() -> impl Strategy<Value = Part> {
    let names: &[(&str, bool)] = &[
        ("name=\"model\"", true),
        ("name=model", true),
        ("NAME = \"model\" ", true),
        ("name=\"mo\\del\"", true),
        ("x=\"a;name=b\"; name=model;", true),
        ("name=\"model\"; x=1", true),
        ("name=\"model\"; filename=\"a.wav\"", false),
        ("filename=a;name=\"model\"", false),
        ("name=\"model\"; filename*=UTF-8''a", false),
        ("name=\"Model\"", false),
        ("name=\"model \"", false),
        ("name=\"\\\"model\\\"\"", false),
        ("name=\"x\\\"; name=model\"", false),
        ("name=\"\"", false),
        ("filename=\"name=model\"", false),
        ("xname=model", false),
    ];
    let other = "(|X-A: name=model; y\r\n|Content-Type: text/plain; charset=utf-8\r\n|Content-Transfer-Encoding: 8BIT\r\n)";
    let disposition = prop::sample::select(
        &[
            "Content-Disposition: form-data; ",
            "content-disposition:form-data;",
            "CONTENT-DISPOSITION:\tattachment ;\t",
        ][..],
    );
    let named = (other, disposition, prop::sample::select(names), other, content()).prop_map(
        |(before, disposition, (name, is_model), after, content)| Part {
            headers: format!("{before}{disposition}{name}\r\n{}", if before == after { "" } else { &after }),
            content,
            is_model,
        },
    );
    let nameless =
        (other, content()).prop_map(|(headers, content)| Part { headers, content, is_model: false });
    prop_oneof![6 => named, 1 => nameless]
}

fn write(
    preamble: Option<&[u8]>,
    padding: &str,
    parts: &[Part],
    epilogue: &[u8],
) -> (Vec<u8>, Vec<Range<u64>>) {
    let mut out = preamble.unwrap_or_default().to_vec();
    let mut at = Vec::new();
    out.extend_from_slice(if preamble.is_some() { DELIMITER } else { &DELIMITER[2..] });
    for part in parts {
        out.extend_from_slice(format!("{padding}\r\n{}\r\n", part.headers).as_bytes());
        let start = out.len() as u64;
        out.extend_from_slice(&part.content);
        if part.is_model {
            at.push(start..out.len() as u64);
        }
        out.extend_from_slice(DELIMITER);
    }
    out.extend_from_slice(b"--");
    out.extend_from_slice(epilogue);
    (out, at)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_found_is_what_was_written(
        preamble in prop::option::of(content()), padding in "( |\t){0,2}",
        parts in prop::collection::vec(part(), 0..5), epilogue in content(), sizes in sizes(),
    ) {
        let (body, at) = write(preamble.as_deref(), &padding, &parts, &epilogue);
        let read = read_all_ways(form, &body, &sizes);
        let models: Vec<&Part> = parts.iter().filter(|part| part.is_model).collect();
        let known = models.iter().map_while(|part| std::str::from_utf8(&part.content).ok().map(str::to_owned));
        let mut expected = ruled(known.map(Some));
        if let Some(odd) = models.iter().find(|part| std::str::from_utf8(&part.content).is_err())
            && expected.is_ok()
        {
            expected = Err(if odd.content.len() > 512 { kind(&Wrong::TooLong { at: 0 }) } else { kind(&Wrong::NotUtf8 { at: 0 }) });
        }
        prop_assert_eq!(outcome(&read), expected, "{} {:?}", body.escape_ascii(), read);
        if let Ok(Some(found)) = read {
            prop_assert_eq!((Some(&found.at), found.again), (at.first(), at.len() > 1));
        }
    }

    #[test]
    fn no_bytes_lead_to_another_model_or_a_panic(pieces in soup(PIECES, 16), sizes in sizes()) {
        let body = [&DELIMITER[2..], &pieces].concat();
        if let Ok(Some(found)) = read_all_ways(form, &body, &sizes) {
            let at = usize::try_from(found.at.start).unwrap()..usize::try_from(found.at.end).unwrap();
            prop_assert_eq!(&body[at.clone()], found.model.as_bytes());
            prop_assert!(body[..at.start].ends_with(b"\r\n\r\n") && body[at.end..].starts_with(DELIMITER));
        }
    }

    #[test]
    fn no_bytes_at_all_lead_to_a_panic(body in prop::collection::vec(any::<u8>(), 0..64), sizes in sizes()) {
        _ = read_all_ways(form, &body, &sizes);
        _ = Finder::of(&format!("multipart/form-data;{}", String::from_utf8_lossy(&body)));
    }
}

const PIECES: &[&[u8]] = &[
    DELIMITER,
    b"\r\n----b_9\r\nContent-Disposition: form-data; name=model\r\n\r\n",
    b"\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n",
    b"\r\nContent-Disposition: form-data",
    b"; name=",
    b"model",
    b"\"",
    b"\\",
    b"\r\n\r\n",
    b"\r\n",
    b"\r",
    b"--",
    b"a",
    b"\r\n----b_9--",
    b"\xff",
];

#[test]
fn a_body_may_be_cut_anywhere() {
    let body = b"x\r\n----b_\r\n----b_9 \r\nContent-Disposition: form-data; name=\"model\"\r\n\r\na\r\n\r\n----b_\r\n----b_9\r\n\r\n\r\n----b_9--\r\n";
    let start = body.windows(4).position(|at| at == b"\r\n\r\n").unwrap() as u64 + 4;
    let model = "a\r\n\r\n----b_";
    let found = Found { model: model.to_owned(), at: start..start + model.len() as u64, again: false };
    for cut in 0..=body.len() {
        let (first, rest) = body.split_at(cut);
        for again in 0..=rest.len() {
            let mut finder = form();
            for piece in [first, &rest[..again], &rest[again..]] {
                finder.push(piece).unwrap();
            }
            finder.end().unwrap();
            assert_eq!(finder.found(), Some(&found), "{cut} {again}");
        }
    }
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    let headers = |at: u64, why| Wrong::Headers { at, why };
    let disposition = "Content-Disposition: form-data; ";
    for (headers, why) in [
        (
            format!("{disposition}name=model\r\n {disposition}name=b"),
            "a line does not begin with a header's name",
        ),
        (format!("{disposition}name=b\r\n{disposition}name=model"), "`Content-Disposition` is in them twice"),
        (format!("{disposition}name=b; name=model"), "a parameter is there twice"),
        (format!("{disposition}name=b; name*=utf-8''model"), "its name is in `name*`"),
        (format!("{disposition}name*0=mo; name*1=del"), "its name is in `name*`"),
        (format!("{disposition}name=\"b; name=model"), "a quotation mark is missing"),
        (format!("{disposition}filename=\"a\"b\"; name=model"), "something stands after a parameter's value"),
        (format!("{disposition}name=b model"), "something stands after a parameter's value"),
        (format!("{disposition}name"), "a parameter has no value"),
        (format!("{disposition}name=x; =model"), "a parameter has no name"),
        (format!("X: y\n{disposition}name=model"), "a line does not end with CR and LF"),
        (format!("X: y\r{disposition}name=model"), "a control character is in them"),
        (format!("X: \0{disposition}name=model"), "a control character is in them"),
        (
            "Content-Disposition : form-data; name=model".to_owned(),
            "a line does not begin with a header's name",
        ),
        ("----b_9".to_owned(), "a line has no colon"),
        (
            format!("{disposition}name=model\r\nContent-Transfer-Encoding: quoted-printable"),
            "the content of `model` is encoded",
        ),
        (format!("X: {}", "y".repeat(17 << 10)), "they are too long"),
    ] {
        let body = format!("----b_9\r\n{headers}\r\n\r\na\r\n----b_9--");
        let read = read(form(), body.as_bytes(), &[usize::MAX]);
        assert!(
            matches!(&read, Err(Wrong::Headers { why: said, .. }) if *said == why),
            "{headers}: {read:?}"
        );
    }
    let model = format!("----b_9\r\n{disposition}name=model\r\n\r\n");
    let at = model.len() as u64;
    for (body, wrong) in [
        (
            format!("----b_9\r\n{disposition}name=b; name=b\r\n\r\n"),
            headers(59, "a parameter is there twice"),
        ),
        ("----b_9x\r\n".to_owned(), Wrong::Delimiter { at: 7, byte: b'x' }),
        ("----b_9\n".to_owned(), Wrong::Delimiter { at: 7, byte: b'\n' }),
        ("----b_9-x".to_owned(), Wrong::Delimiter { at: 8, byte: b'x' }),
        (format!("{model}a\r\n----b_9x"), Wrong::Delimiter { at: at + 10, byte: b'x' }),
        (format!("{model}----b_9--"), Wrong::NoContent { at: at + 7 }),
        (format!("{model}a\r\n----b_9"), Wrong::Ended { at: at + 10 }),
        (format!("{model}a\n----b_9--"), Wrong::Ended { at: at + 11 }),
        (format!("{model}{}", "x".repeat(513)), Wrong::TooLong { at }),
        (String::new(), Wrong::Ended { at: 0 }),
        (r#"{"model":"a"}"#.to_owned(), Wrong::Ended { at: 13 }),
        (
            format!("{model}a\r\n{model}b\r\n----b_9--"),
            Wrong::Twice { first: "a".to_owned(), second: "b".to_owned(), at: 2 * at + 3 },
        ),
    ] {
        assert_eq!(read_all_ways(form, body.as_bytes(), &[2]), Err(wrong), "{body}");
    }
    let utf8 = [model.as_bytes(), b"\xff\r\n----b_9--"].concat();
    assert_eq!(read_all_ways(form, &utf8, &[2]), Err(Wrong::NotUtf8 { at }));
}
