//! Takes out of a text what must not reach logs, Events or status: signed queries, tokens, secrets.

/// Names whose value is a secret wherever it stands.
const SECRETS: &[&str] = &[
    "access_token",
    "accesstoken",
    "refresh_token",
    "id_token",
    "client_assertion",
    "client_secret",
    "clientsecret",
    "assertion",
    "password",
    "accountkey",
    "sharedaccesssignature",
    "sig",
    "authorization",
];
const BLANK: &str = "[redacted]";

/// `text` without queries of URLs, bearer tokens, JWTs and values of secrets.
pub(crate) fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // Words between delimiters; delimiters are kept as they are.
    let mut rest = text;
    let mut secret_next = false;
    while !rest.is_empty() {
        let end = rest.find(is_delimiter).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if !word.is_empty() {
            let scheme = word.eq_ignore_ascii_case("bearer") || word.eq_ignore_ascii_case("basic");
            let name = word.trim_end_matches([':', '=']);
            if secret_next && !scheme && !name.is_empty() {
                out.push_str(BLANK);
            } else {
                out.push_str(&clean(word));
            }
            // `bearer <token>`, but not "a bearer token is needed"; `"name": "value"` as well as `name=value`.
            secret_next = (scheme && long_token(after.trim_start_matches(is_delimiter)))
                || (is_secret(name) && (word.len() > name.len() || introduces_value(after)))
                || (secret_next && (scheme || name.is_empty()));
        }
        let Some(delimiter) = after.chars().next() else { break };
        out.push(delimiter);
        rest = &after[delimiter.len_utf8()..];
    }
    out
}

fn is_delimiter(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | ',' | ';' | '{' | '}' | '(' | ')' | '\\' | '`')
}

/// `": "` or ` = ` after a name in quotes.
fn introduces_value(after: &str) -> bool {
    let rest = after.trim_start_matches(['"', '\'', ' ', '\\']);
    rest.starts_with([':', '='])
}

fn is_secret(name: &str) -> bool {
    SECRETS.iter().any(|secret| secret.eq_ignore_ascii_case(name))
}

/// Whether `rest` begins with something that is no word of a language.
fn long_token(rest: &str) -> bool {
    let token = rest.split(is_delimiter).next().unwrap_or_default();
    token.len() >= 16
}

fn clean(word: &str) -> String {
    // A query: of a URL, or of a path alone.
    if let Some((path, query)) = word.split_once('?')
        && query.contains('=')
    {
        return format!("{}?{BLANK}", without_jwts(path));
    }
    if word.contains('=') {
        let parts = word.split('&').map(|part| match part.split_once('=') {
            Some((name, value)) if is_secret(name) && !value.is_empty() => format!("{name}={BLANK}"),
            _ => without_jwts(part),
        });
        return parts.collect::<Vec<_>>().join("&");
    }
    if let Some((name, value)) = word.split_once(':')
        && is_secret(name)
        && !value.is_empty()
    {
        return format!("{name}:{BLANK}");
    }
    without_jwts(word)
}

/// Three parts of base64url, the first a JSON object: `eyJ….….…`; also when cut short.
fn without_jwts(word: &str) -> String {
    let Some(start) = word.find("eyJ") else { return word.to_owned() };
    let token_end = word[start..]
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '=')))
        .map_or(word.len(), |end| start + end);
    if token_end - start < 16 {
        return word.to_owned();
    }
    format!("{}{BLANK}{}", &word[..start], without_jwts(&word[token_end..]))
}
