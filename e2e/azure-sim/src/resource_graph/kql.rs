//! As much of KQL as the documented queries of `SpotResources` need.

use std::cmp::Ordering;
use std::iter::Peekable;

use serde_json::{Map, Value, json};

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Number(u64),
    Sign(&'static str),
}

/// Longer signs first.
const SIGNS: &[&str] = &["=~", "!~", "==", "!=", "~", "=", "(", ")", ",", ".", "[", "]", "|"];

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length;
        if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            tokens.push(Token::Sign(sign));
            length = sign.len();
        } else if first == '\'' || first == '"' {
            let end = rest[1..].find(first).ok_or_else(|| format!("no end of the text at {rest:?}"))?;
            tokens.push(Token::Text(rest[1..=end].to_owned()));
            length = end + 2;
        } else {
            let part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
            length = rest.find(|letter| !part(letter)).unwrap_or(rest.len());
            let word = &rest[..length];
            match word.parse() {
                _ if word.is_empty() => return Err(format!("{first:?} is not understood")),
                Ok(number) => tokens.push(Token::Number(number)),
                Err(_) => tokens.push(Token::Word(word.to_owned())),
            }
        }
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

/// A value of a row: `properties.spotPrices[0].priceUSD`.
#[derive(Debug, Clone, PartialEq)]
struct Place(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Member(String),
    Element(usize),
}

impl Place {
    fn of<'a>(&self, row: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(row, |value, step| match step {
            Step::Member(name) => value.get(name),
            Step::Element(index) => value.get(index),
        })
    }

    /// What a projected column is called that nobody gave a name.
    fn name(&self) -> String {
        let parts = self.0.iter().map(|step| match step {
            Step::Member(name) => name.clone(),
            Step::Element(index) => index.to_string(),
        });
        parts.collect::<Vec<_>>().join("_")
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Cast {
    AsIs,
    Text,
    Number,
}

#[derive(Debug, Clone, PartialEq)]
struct Condition {
    place: Place,
    any_of: Vec<String>,
    fold: bool,
    negate: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Stage {
    Where(Vec<Condition>),
    Project(Vec<(String, Cast, Place)>),
    Order(Vec<(Place, bool)>),
    Take(usize),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Query(Vec<Stage>);

struct Parser<'a>(Peekable<std::slice::Iter<'a, Token>>);

impl Parser<'_> {
    fn wanted<T>(&mut self, what: &str) -> Result<T, String> {
        Err(match self.0.peek() {
            Some(token) => format!("{what} expected, not {token:?}"),
            None => format!("{what} expected, but the query is over"),
        })
    }

    fn word(&mut self) -> Result<&str, String> {
        if matches!(self.0.peek(), Some(Token::Word(_)))
            && let Some(Token::Word(word)) = self.0.next()
        {
            return Ok(word);
        }
        self.wanted("a name")
    }

    fn takes(&mut self, sign: &str) -> bool {
        self.0.next_if(|token| matches!(token, Token::Sign(found) if *found == sign)).is_some()
    }

    fn takes_word(&mut self, wanted: &str) -> bool {
        self.0.next_if(|token| matches!(token, Token::Word(word) if word == wanted)).is_some()
    }

    fn sign(&mut self, sign: &str) -> Result<(), String> {
        if self.takes(sign) { Ok(()) } else { self.wanted(sign) }
    }

    fn text(&mut self) -> Result<String, String> {
        if let Some(Token::Text(text)) = self.0.next_if(|token| matches!(token, Token::Text(_))) {
            return Ok(text.clone());
        }
        self.wanted("a text")
    }

    fn number(&mut self) -> Result<usize, String> {
        if let Some(Token::Number(number)) = self.0.next_if(|token| matches!(token, Token::Number(_))) {
            return Ok(*number as usize);
        }
        self.wanted("a number")
    }

    fn place(&mut self) -> Result<Place, String> {
        let first = self.word()?.to_owned();
        self.place_from(first)
    }

    fn place_from(&mut self, first: String) -> Result<Place, String> {
        let mut steps = vec![Step::Member(first)];
        loop {
            if self.takes(".") {
                steps.push(Step::Member(self.word()?.to_owned()));
            } else if self.takes("[") {
                steps.push(Step::Element(self.number()?));
                self.sign("]")?;
            } else {
                return Ok(Place(steps));
            }
        }
    }

    fn list<T>(&mut self, one: impl Fn(&mut Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        let mut all = vec![one(self)?];
        while self.takes(",") {
            all.push(one(self)?);
        }
        Ok(all)
    }

    fn condition(&mut self) -> Result<Condition, String> {
        let place = self.place()?;
        let (fold, negate) = if self.takes("=~") {
            (true, false)
        } else if self.takes("!~") {
            (true, true)
        } else if self.takes("==") {
            (false, false)
        } else if self.takes("!=") {
            (false, true)
        } else if self.takes_word("in") {
            let fold = self.takes("~");
            self.sign("(")?;
            let any_of = self.list(Self::text)?;
            self.sign(")")?;
            return Ok(Condition { place, any_of, fold, negate: false });
        } else {
            return self.wanted("a comparison");
        };
        Ok(Condition { place, any_of: vec![self.text()?], fold, negate })
    }

    fn column(&mut self) -> Result<(String, Cast, Place), String> {
        let first = self.word()?.to_owned();
        if self.takes("=") {
            let second = self.word()?.to_owned();
            let (cast, place) = self.value(second)?;
            return Ok((first, cast, place));
        }
        let (cast, place) = self.value(first)?;
        Ok((place.name(), cast, place))
    }

    fn value(&mut self, first: String) -> Result<(Cast, Place), String> {
        let cast = match first.as_str() {
            "tostring" => Cast::Text,
            "todouble" | "toreal" => Cast::Number,
            _ => return Ok((Cast::AsIs, self.place_from(first)?)),
        };
        self.sign("(")?;
        let place = self.place()?;
        self.sign(")")?;
        Ok((cast, place))
    }

    fn stage(&mut self) -> Result<Stage, String> {
        let verb = self.word()?.to_owned();
        match verb.as_str() {
            "where" => {
                let mut conditions = vec![self.condition()?];
                while self.takes_word("and") {
                    conditions.push(self.condition()?);
                }
                Ok(Stage::Where(conditions))
            }
            "project" => Ok(Stage::Project(self.list(Self::column)?)),
            "order" | "sort" => {
                if !self.takes_word("by") {
                    return self.wanted("by");
                }
                let key = |parser: &mut Self| {
                    let place = parser.place()?;
                    // KQL sorts downwards unless told.
                    let up = parser.takes_word("asc");
                    parser.takes_word("desc");
                    Ok((place, up))
                };
                self.list(key).map(Stage::Order)
            }
            "limit" | "take" => self.number().map(Stage::Take),
            other => Err(format!("{other} is not understood")),
        }
    }
}

impl Query {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let tokens = tokens(text)?;
        let mut parser = Parser(tokens.iter().peekable());
        let table = parser.word()?;
        if !table.eq_ignore_ascii_case("SpotResources") {
            return Err(format!("there is no table {table}"));
        }
        let mut stages = Vec::new();
        while parser.takes("|") {
            stages.push(parser.stage()?);
        }
        if parser.0.peek().is_some() {
            return parser.wanted("| or the end");
        }
        Ok(Self(stages))
    }

    pub(super) fn limited(&self) -> bool {
        self.0.iter().any(|stage| matches!(stage, Stage::Take(_)))
    }

    /// Whether a limit of the query left something out.
    pub(super) fn cut(&self, rows: Vec<Value>) -> bool {
        let unlimited =
            Self(self.0.iter().filter(|stage| !matches!(stage, Stage::Take(_))).cloned().collect());
        unlimited.run(rows.clone()).len() > self.run(rows).len()
    }

    pub(super) fn run(&self, mut rows: Vec<Value>) -> Vec<Value> {
        for stage in &self.0 {
            match stage {
                Stage::Where(conditions) => {
                    rows.retain(|row| conditions.iter().all(|condition| condition.holds(row)));
                }
                Stage::Project(columns) => {
                    for row in &mut rows {
                        let cells = columns.iter().map(|(name, cast, place)| {
                            (name.clone(), cast.of(place.of(row).unwrap_or(&Value::Null)))
                        });
                        let cells: Map<String, Value> = cells.collect();
                        *row = Value::Object(cells);
                    }
                }
                Stage::Order(keys) => rows.sort_by(|a, b| {
                    keys.iter().fold(Ordering::Equal, |order, (place, up)| {
                        let theirs = compare(place.of(a), place.of(b));
                        order.then(if *up { theirs } else { theirs.reverse() })
                    })
                }),
                Stage::Take(most) => rows.truncate(*most),
            }
        }
        rows
    }
}

impl Condition {
    fn holds(&self, row: &Value) -> bool {
        let found = self.place.of(row).and_then(Value::as_str).unwrap_or_default();
        let same = |text: &String| if self.fold { text.eq_ignore_ascii_case(found) } else { text == found };
        self.any_of.iter().any(same) != self.negate
    }
}

impl Cast {
    fn of(self, value: &Value) -> Value {
        match (self, value) {
            (Self::Text, Value::Null) => json!(""),
            (Self::Text, Value::String(text)) => json!(text),
            (Self::Text, other) => json!(other.to_string()),
            (Self::Number, Value::String(text)) => json!(text.parse::<f64>().ok()),
            (Self::Number | Self::AsIs, other) => other.clone(),
        }
    }
}

fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => {
            a.as_f64().unwrap_or_default().total_cmp(&b.as_f64().unwrap_or_default())
        }
        (a, b) => {
            let text =
                |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_lowercase();
            text(a).cmp(&text(b))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whoever sends nonsense is told so; nobody else notices.
        #[test]
        fn nonsense_is_refused_and_nothing_worse(
            text in r#"(SpotResources|[\PC]{0,8})( ?(\||where|project|order by|take|in~|=~|==|and|'|"|sku|\.|\[0\]|\(|\)|,|7|é))*"#,
        ) {
            if let Ok(query) = Query::parse(&text) {
                query.run(vec![json!({"sku": {"name": "a"}, "list": [1]})]);
            }
        }
    }
}
