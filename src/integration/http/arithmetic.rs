//! The filters and tests that compute with numbers, all exact; operators become them, too (`operators.rs`).
//!
//! `plus`, `minus`, `times`, `sum`, `round`, `fixed`, `abs`, `int` and `float` also read texts that hold decimals, as
//! many banks send amounts. A text among the operands makes a text of the result, but for `int` and `float`. The
//! operators read numbers alone, for `'1' + '2'` joins texts.

use std::cmp::Ordering;
use std::error::Error as _;
use std::fmt;

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value, filters};

use super::decimal::{Decimal, Digits, MAX_SCALE, is_plain};
use super::numbers::{self, Exact};

/// Integers up to this are floats, too.
const FLOAT_INTEGERS: i128 = 1 << 53;

/// The filters that put values in an order, and the argument that names what they order by.
const ORDERED: [&str; 5] = ["sort", "min", "max", "unique", "groupby"];

/// What is wrong, in words that may be shown: they hold no value.
#[derive(Debug)]
struct Problem(String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Problem {}

/// An error that may be shown.
pub(super) fn failed(problem: impl Into<String>) -> Error {
    let problem = problem.into();
    Error::new(ErrorKind::InvalidOperation, problem.clone()).with_source(Problem(problem))
}

/// An error in words that may be shown: for others than those of [`failed`] their kind, as their details may hold what
/// a bank answered.
pub(super) fn words(error: &Error) -> String {
    let mut source = error.source();
    while let Some(found) = source {
        if let Some(Problem(problem)) = found.downcast_ref() {
            return problem.clone();
        }
        source = found.source();
    }
    error.kind().to_string()
}

/// Adds them all to an environment, in place of those that compute with floats.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    for (name, operator) in OPERATIONS {
        environment.add_filter(name, move |state: &State<'_, '_>, one: &Value, other: &Value| {
            operator.apply(state, one, other)
        });
    }
    environment.add_filter("__negate", |value: &Value| of(read(value, "-", false)?.0.negated(), "-"));
    environment.add_filter("__concat", |state: &State<'_, '_>, one: &Value, other: &Value| {
        Ok::<_, Error>(format!("{}{}", text(state, one)?, text(state, other)?))
    });
    environment.add_filter("__number", |text: &str| numbers::number(text));
    environment.add_filter("sum", sum);
    environment.add_filter("flatten", flatten);
    environment
        .add_filter("round", |value: &Value, places: Option<u32>| rounded(value, "round", places, Decimal::rounded));
    environment.add_filter("fixed", |value: &Value, places: u32| {
        rounded(value, "fixed", Some(places), Decimal::fixed).map(|value| Value::from(value.to_string()))
    });
    environment.add_filter("abs", |value: &Value| {
        let (decimal, is_text) = read(value, "abs", true)?;
        let absolute = if decimal.units < 0 { decimal.negated() } else { Some(decimal) };
        result(absolute, is_text, "abs")
    });
    environment.add_filter("int", |value: &Value| match value.kind() {
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        _ => of(read(value, "int", true)?.0.truncated(), "int"),
    });
    environment.add_filter("float", |value: &Value| of(Some(read(value, "float", true)?.0), "float"));
    environment.add_filter("string", |state: &State<'_, '_>, value: &Value| text(state, value));
    environment.add_filter("tojson", |state: &State<'_, '_>, value: &Value| {
        numbers::written(state, value).map_err(|problem| failed(format!("tojson: the value {problem}")))
    });
    environment.add_filter("__join", filters::join);
    environment.add_filter("join", join);
    add_orders(environment);
}

fn add_orders(environment: &mut Environment<'static>) {
    environment.add_filter("__sort", filters::sort);
    environment.add_filter("__min", filters::min);
    environment.add_filter("__max", filters::max);
    environment.add_filter("__unique", filters::unique);
    environment.add_filter("__groupby", filters::groupby);
    for name in ORDERED {
        environment.add_filter(
            name,
            move |state: &mut State<'_, '_>, value: &Value, arguments: Rest<ValueOrKwargs>| {
                let arguments = arguments.into_values();
                let items: Vec<Value> = value.try_iter()?.collect();
                let by = match arguments.first() {
                    Some(first) if first.as_str().is_some() => first.as_str().map(str::to_owned),
                    _ => {
                        arguments.iter().find_map(|named| named.get_attr("attribute").ok()?.as_str().map(str::to_owned))
                    }
                };
                check_order(&items, by.as_deref(), name)?;
                let all: Vec<Value> = std::iter::once(Value::from(items)).chain(arguments.iter().cloned()).collect();
                state.apply_filter(&format!("__{name}"), &all)
            },
        );
    }
    // Tables are ordered by their values only where that is asked for.
    environment.remove_filter("dictsort");
    // It writes floats as C does.
    environment.remove_filter("format");
    let is_number = |value: &Value| value.kind() == ValueKind::Number || value.downcast_object_ref::<Exact>().is_some();
    environment.add_test("number", is_number);
    environment.add_test("float", move |value: &Value| is_number(value) && !value.is_integer());
    for (names, comparison) in COMPARISONS {
        for name in names {
            let compare = move |state: &State<'_, '_>, one: &Value, other: &Value| comparison.holds(state, one, other);
            if name.starts_with("__") {
                environment.add_filter(*name, compare);
            } else {
                environment.add_test(*name, compare);
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Operation {
    shown: &'static str,
    compute: fn(Decimal, Decimal) -> Option<Decimal>,
    reads_texts: bool,
}

const fn operation(
    shown: &'static str,
    compute: fn(Decimal, Decimal) -> Option<Decimal>,
    reads_texts: bool,
) -> Operation {
    Operation { shown, compute, reads_texts }
}

const OPERATIONS: [(&str, Operation); 10] = [
    ("plus", operation("plus", Decimal::plus, true)),
    ("minus", operation("minus", Decimal::minus, true)),
    ("times", operation("times", Decimal::times, true)),
    ("__add", operation("+", Decimal::plus, false)),
    ("__subtract", operation("-", Decimal::minus, false)),
    ("__multiply", operation("*", Decimal::times, false)),
    ("__divide", operation("/", Decimal::divided_by, false)),
    ("__quotient", operation("//", Decimal::whole_quotient, false)),
    ("__remainder", operation("%", Decimal::remainder, false)),
    ("__power", operation("**", Decimal::to_the, false)),
];

impl Operation {
    fn apply(self, state: &State<'_, '_>, one: &Value, other: &Value) -> Result<Value, Error> {
        let Operation { shown, compute, reads_texts } = self;
        match (shown, one.kind(), other.kind()) {
            ("+", ValueKind::String, ValueKind::String) => {
                return Ok(Value::from(format!("{}{}", text(state, one)?, text(state, other)?)));
            }
            ("+", ValueKind::Seq | ValueKind::Iterable, ValueKind::Seq | ValueKind::Iterable) => {
                return Ok(one.try_iter()?.chain(other.try_iter()?).collect());
            }
            _ => {}
        }
        let (one, one_is_text) = read(one, shown, reads_texts)?;
        let (other, other_is_text) = read(other, shown, reads_texts)?;
        if other.units == 0 && matches!(shown, "/" | "//" | "%") {
            return Err(failed(format!("{shown} divides by zero")));
        }
        let computed = compute(one, other);
        if computed.is_none() && shown == "/" {
            return Err(failed("/ has no exact decimal as its result: multiply, or use // for whole numbers"));
        }
        result(computed, one_is_text || other_is_text, shown)
    }
}

#[derive(Clone, Copy)]
struct Comparison {
    shown: &'static str,
    holds: fn(Ordering) -> bool,
}

const COMPARISONS: [(&[&str], Comparison); 6] = [
    (&["__eq", "eq", "equalto", "=="], Comparison { shown: "==", holds: Ordering::is_eq }),
    (&["__ne", "ne", "!="], Comparison { shown: "!=", holds: Ordering::is_ne }),
    (&["__lt", "lt", "lessthan", "<"], Comparison { shown: "<", holds: Ordering::is_lt }),
    (&["__le", "le", "<="], Comparison { shown: "<=", holds: Ordering::is_le }),
    (&["__gt", "gt", "greaterthan", ">"], Comparison { shown: ">", holds: Ordering::is_gt }),
    (&["__ge", "ge", ">="], Comparison { shown: ">=", holds: Ordering::is_ge }),
];

impl Comparison {
    fn holds(self, state: &State<'_, '_>, one: &Value, other: &Value) -> Result<bool, Error> {
        let is_strict = state.undefined_behavior() == UndefinedBehavior::Strict;
        if is_strict && (one.is_undefined() || other.is_undefined()) {
            return Err(Error::from(ErrorKind::UndefinedError));
        }
        let ordering = match (numbers::token(one), numbers::token(other)) {
            (Some(one), Some(other)) => Digits::of(&one).cmp(&Digits::of(&other)),
            _ if matches!(self.shown, "==" | "!=") => {
                return Ok((one == other) == (self.shown == "=="));
            }
            (Some(_), None) if other.as_str().is_some() => return Err(self.mixed()),
            (None, Some(_)) if one.as_str().is_some() => return Err(self.mixed()),
            _ => one.cmp(other),
        };
        Ok((self.holds)(ordering))
    }

    fn mixed(self) -> Error {
        failed(format!("{} compares a number with a text: make a number of it with float", self.shown))
    }
}

/// The decimal that a value is, and whether it is one as a text.
fn read(value: &Value, by: &str, reads_texts: bool) -> Result<(Decimal, bool), Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let met = match (numbers::token(value), value.as_str()) {
        (Some(token), _) => match Decimal::parse_number(&token) {
            Some(decimal) => return Ok((decimal, false)),
            None => "a number with too many digits to compute with",
        },
        (None, Some(text)) if reads_texts => match Decimal::parse(text) {
            Some(decimal) => return Ok((decimal, true)),
            None if is_plain(text) => "a text whose number has too many digits to compute with",
            None => "a text that is no number",
        },
        (None, Some(_)) => "a text, which plus, minus, times and float would read",
        _ => match value.kind() {
            ValueKind::None => "null",
            ValueKind::Bool => "a truth value",
            ValueKind::Seq | ValueKind::Iterable => "a list",
            _ => "an object",
        },
    };
    Err(failed(format!("{by} needs numbers and met {met}")))
}

fn result(computed: Option<Decimal>, is_text: bool, by: &str) -> Result<Value, Error> {
    match computed {
        Some(decimal) if is_text => Ok(Value::from(decimal.to_string())),
        computed => of(computed, by),
    }
}

fn of(computed: Option<Decimal>, by: &str) -> Result<Value, Error> {
    let problem = || failed(format!("{by} has a result with more digits than are computed with"));
    computed.map(|decimal| numbers::number(&decimal.to_string())).ok_or_else(problem)
}

fn rounded(
    value: &Value,
    by: &str,
    places: Option<u32>,
    round: fn(Decimal, u32) -> Option<Decimal>,
) -> Result<Value, Error> {
    let places = places.unwrap_or(0);
    if places > MAX_SCALE {
        return Err(failed(format!("{by} has too many places: use at most {MAX_SCALE}")));
    }
    let (decimal, is_text) = read(value, by, true)?;
    result(round(decimal, places), is_text || by == "fixed", by)
}

fn text(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    if value.is_undefined() && state.undefined_behavior() == UndefinedBehavior::Strict {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    Ok(numbers::spelled(state, value).unwrap_or_else(|| value.to_string()))
}

/// The filter `flatten`: a list of lists as one list.
fn flatten(lists: &Value) -> Result<Value, Error> {
    let mut all = Vec::new();
    for list in lists.try_iter()? {
        all.extend(list.try_iter()?);
    }
    Ok(Value::from(all))
}

/// The filter `sum`: a text among the values makes a text of the sum, with as many digits after the point as the longest
/// has.
fn sum(values: &Value, attribute: Option<String>, named: Kwargs) -> Result<Value, Error> {
    let attribute = match attribute {
        None => named.get::<Option<String>>("attribute")?,
        given => given,
    };
    named.assert_all_used()?;
    if values.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let no_list = || failed("sum needs a list");
    let (mut total, mut has_text) = (Decimal::ZERO, false);
    for (position, item) in values.try_iter().map_err(|_| no_list())?.enumerate() {
        let value = at(&item, attribute.as_deref())?;
        let by = format!("sum, at item {position},");
        if value.is_undefined() {
            return Err(failed(format!("{by} needs numbers and met nothing")));
        }
        let (value, is_text) = read(&value, &by, true)?;
        has_text |= is_text;
        let problem = || failed(format!("{by} has a result with more digits than are computed with"));
        total = total.plus(value).ok_or_else(problem)?;
    }
    result(Some(total), has_text, "sum")
}

/// What is at a path such as `amount.value`; undefined where nothing is.
fn at(item: &Value, path: Option<&str>) -> Result<Value, Error> {
    let mut names = path.iter().flat_map(|path| path.split('.'));
    names.try_fold(item.clone(), |value, name| match value.is_undefined() {
        true => Ok(value),
        false => value.get_attr(name),
    })
}

fn join(state: &mut State<'_, '_>, values: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let arguments = arguments.into_values();
    let named = arguments.iter().find(|argument| argument.is_kwargs());
    let attribute = named.and_then(|named| named.get_attr("attribute").ok()).filter(|path| !path.is_undefined());
    let attribute = attribute.or_else(|| arguments.get(1).cloned()).filter(|path| path.as_str().is_some());
    let mut texts = Vec::new();
    for item in values.try_iter()? {
        let item = at(&item, attribute.as_ref().and_then(Value::as_str))?;
        texts.push(numbers::spelled(state, &item).map_or(item, Value::from));
    }
    let joiner = arguments.first().filter(|joiner| joiner.as_str().is_some()).cloned();
    let joiner = joiner.or_else(|| named.and_then(|named| named.get_attr("d").ok()).filter(|d| !d.is_undefined()));
    let all: Vec<Value> = std::iter::once(Value::from(texts)).chain(joiner).collect();
    state.apply_filter("__join", &all)
}

/// Values are in the order of their numbers unless MiniJinja would compare an [`Exact`] with another kind of number, or
/// round a long integer to compare it with a float.
fn check_order(items: &[Value], by: Option<&str>, filter: &str) -> Result<(), Error> {
    let (mut has_exact, mut has_integer, mut has_float, mut has_long) = (false, false, false, false);
    for path in by.map_or_else(|| vec![None], |by| by.split(',').map(|path| Some(path.trim())).collect()) {
        for item in items {
            let value = at(item, path)?;
            has_exact |= value.downcast_object_ref::<Exact>().is_some();
            if value.kind() == ValueKind::Number {
                let is_integer = value.is_integer();
                has_integer |= is_integer;
                has_float |= !is_integer;
                has_long |= is_integer && i128::try_from(value).is_ok_and(|whole| whole.abs() > FLOAT_INTEGERS);
            }
        }
    }
    if (has_exact && (has_integer || has_float)) || (has_float && has_long) {
        return Err(failed(format!("{filter} cannot put long numbers and short ones in one order")));
    }
    Ok(())
}
