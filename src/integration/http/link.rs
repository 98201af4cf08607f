//! The `Link` header of RFC 8288, as far as pagination needs it: the target of `rel="next"`.

/// The first target with the relation `next` among the values of all `Link` headers of an answer. A link with an
/// `anchor` is about another document and does not count.
pub(super) fn next<'a>(headers: impl Iterator<Item = &'a str>) -> Option<String> {
    headers.flat_map(links).find(|link| link.is_next).map(|link| link.target.to_owned())
}

struct Link<'a> {
    target: &'a str,
    is_next: bool,
}

fn links(value: &str) -> Vec<Link<'_>> {
    let (mut links, mut rest) = (Vec::new(), value);
    while let Some((target, after)) = rest.split_once('<').and_then(|(_, inside)| inside.split_once('>')) {
        let (parameters, after) = after.split_at(end(after, ','));
        links.push(Link { target: target.trim(), is_next: is_next(parameters) });
        rest = after;
    }
    links
}

/// Where `stop` is outside of quotes, or the end.
fn end(text: &str, stop: char) -> usize {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let found = text.char_indices().find(|(_, character)| {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            _ => return !is_quoted && *character == stop,
        }
        false
    });
    found.map_or(text.len(), |(at, _)| at)
}

/// Whether the parameters say `rel=next`, and not of another document. Only the first `rel` counts.
fn is_next(mut parameters: &str) -> bool {
    let (mut relations, mut has_anchor) = (None, false);
    while !parameters.is_empty() {
        let (parameter, rest) = parameters.split_at(end(parameters, ';'));
        parameters = rest.strip_prefix(';').unwrap_or_default();
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "rel" => relations = relations.or(Some(value.trim().trim_matches('"'))),
            "anchor" => has_anchor = true,
            _ => {}
        }
    }
    let has_next = |relations: &str| relations.split_whitespace().any(|one| one.eq_ignore_ascii_case("next"));
    !has_anchor && relations.is_some_and(has_next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_link_is_found_in_all_forms_that_the_standard_allows() {
        for (headers, expected) in [
            (&["</a?page=2>; rel=\"next\""][..], Some("/a?page=2")),
            (&["</a>; rel=prev, </b>; rel=next"], Some("/b")),
            (&["</a>; rel=prev", "</b>; rel=next"], Some("/b")),
            (&["</a?x=1,2;3>; rel=\"last next\""], Some("/a?x=1,2;3")),
            (&["</a>;title=\"a, <b>; rel=next\";REL=NEXT"], Some("/a")),
            (&["</a> ; rel = \"next\""], Some("/a")),
            (&["</a>; title=\"\\\"; rel=next\"; rel=prev"], None),
            (&["</a>; rel=prev; rel=next"], None),
            (&["</a>; rel=next; anchor=\"#x\", </b>; rel=next"], Some("/b")),
            (&["</a>; rel=nextish"], None),
            (&["</a>"], None),
            (&["/a; rel=next"], None),
            (&["</a; rel=next"], None),
            (&[""], None),
            (&[], None),
        ] {
            assert_eq!(next(headers.iter().copied()).as_deref(), expected, "{headers:?}");
        }
    }
}
