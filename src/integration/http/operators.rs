//! Expressions as MiniJinja is to see them: operators that would compute with floats become exact filters.
//!
//! `a * b` becomes `a|__multiply(b)`, and so do all arithmetic and all comparisons (`arithmetic.rs`). The names of
//! filters and tests are looked at on the way: MiniJinja itself would find a wrong one only when it is used.

use minijinja::machinery::{self, ast};
use minijinja::{Environment, ErrorKind, Value};

use ast::{BinOpKind, CallArg, CompareOpKind, Expr, UnaryOpKind};

/// Longer expressions are a mistake; also once they are written out.
const MAX_BYTES: usize = 64 * 1024;

/// Writes an expression that parses in the way that `environment` is to evaluate it. The error says what is wrong.
pub(super) fn exact(environment: &Environment<'_>, source: &str) -> Result<String, String> {
    let tree = machinery::parse_expr(source).map_err(|error| format!("does not parse: {error}"))?;
    let mut writer = Writer { environment, source, out: String::new() };
    writer.expression(&tree)?;
    Ok(writer.out)
}

struct Writer<'a> {
    environment: &'a Environment<'a>,
    source: &'a str,
    out: String,
}

impl Writer<'_> {
    fn expression(&mut self, tree: &Expr<'_>) -> Result<(), String> {
        if self.out.len() > MAX_BYTES {
            return Err(format!("is too long: use at most {MAX_BYTES} bytes"));
        }
        match tree {
            Expr::Var(var) => self.out.push_str(var.id),
            Expr::Const(constant) => self.constant(constant)?,
            Expr::Slice(slice) => self.slice(slice)?,
            Expr::UnaryOp(unary) => match unary.op {
                UnaryOpKind::Not => {
                    self.out.push_str("not ");
                    self.operand(&unary.expr)?;
                }
                UnaryOpKind::Neg => {
                    self.operand(&unary.expr)?;
                    self.out.push_str("|__negate");
                }
            },
            Expr::BinOp(binary) => self.binary(binary.op, &binary.left, &binary.right)?,
            Expr::Compare(chain) => {
                let mut left = &chain.expr;
                for (position, step) in chain.ops.iter().enumerate() {
                    self.out.push_str(if position == 0 { "" } else { " and " });
                    self.comparison(step.op, left, &step.expr)?;
                    left = &step.expr;
                }
            }
            Expr::IfExpr(choice) => {
                self.operand(&choice.true_expr)?;
                self.out.push_str(" if ");
                self.operand(&choice.test_expr)?;
                if let Some(other) = &choice.false_expr {
                    self.out.push_str(" else ");
                    self.operand(other)?;
                }
            }
            Expr::Filter(filter) => {
                self.check_filter(filter.name)?;
                self.check_named(filter.name, &filter.args)?;
                filter.expr.as_ref().map_or(Ok(()), |value| self.operand(value))?;
                self.out.push('|');
                self.out.push_str(filter.name);
                self.arguments(&filter.args)?;
            }
            Expr::Test(test) => {
                self.check_test(test.name)?;
                self.operand(&test.expr)?;
                self.out.push_str(" is ");
                self.out.push_str(test.name);
                if !test.args.is_empty() {
                    self.arguments(&test.args)?;
                }
            }
            Expr::GetAttr(attribute) => {
                self.operand(&attribute.expr)?;
                self.out.push('.');
                self.out.push_str(attribute.name);
            }
            Expr::GetItem(item) => {
                self.operand(&item.expr)?;
                self.out.push('[');
                self.expression(&item.subscript_expr)?;
                self.out.push(']');
            }
            Expr::Call(call) => {
                let Expr::Var(function) = &call.expr else {
                    let name = if let Expr::GetAttr(method) = &call.expr { method.name } else { "it" };
                    return Err(format!("calls {name:?}: values have no methods, use a filter such as | upper"));
                };
                self.out.push_str(function.id);
                self.arguments(&call.args)?;
            }
            Expr::List(list) => self.items('[', &list.items, ']')?,
            Expr::Tuple(tuple) => self.items('[', &tuple.items, ']')?,
            Expr::Map(map) => {
                self.out.push('{');
                for (name, value) in map.keys.iter().zip(&map.values) {
                    self.expression(name)?;
                    self.out.push(':');
                    self.expression(value)?;
                    self.out.push(',');
                }
                self.out.push('}');
            }
        }
        Ok(())
    }

    /// `a[1:n]` becomes `[a[1:n:],a,1,n][0]`: MiniJinja does not see which names a slice uses.
    fn slice(&mut self, slice: &ast::Slice<'_>) -> Result<(), String> {
        self.out.push('[');
        self.operand(&slice.expr)?;
        self.out.push('[');
        let parts = [&slice.start, &slice.stop, &slice.step];
        for (position, part) in parts.into_iter().enumerate() {
            self.out.push_str(if position == 0 { "" } else { ":" });
            part.as_ref().map_or(Ok(()), |part| self.expression(part))?;
        }
        self.out.push(']');
        for part in std::iter::once(&slice.expr).chain(parts.into_iter().flatten()) {
            self.out.push(',');
            self.expression(part)?;
        }
        self.out.push_str("][0]");
        Ok(())
    }

    /// What a filter, a dot or a word can follow.
    fn operand(&mut self, tree: &Expr<'_>) -> Result<(), String> {
        let binds = match tree {
            Expr::Var(_) | Expr::Slice(_) | Expr::Filter(_) | Expr::GetAttr(_) | Expr::GetItem(_) => true,
            Expr::Call(_) | Expr::List(_) | Expr::Map(_) => true,
            Expr::BinOp(binary) => filter_of(binary.op).is_some(),
            _ => false,
        };
        if binds {
            return self.expression(tree);
        }
        self.out.push('(');
        self.expression(tree)?;
        self.out.push(')');
        Ok(())
    }

    fn binary(&mut self, operator: BinOpKind, left: &Expr<'_>, right: &Expr<'_>) -> Result<(), String> {
        if let Some(filter) = filter_of(operator) {
            return self.filtered(filter, left, right);
        }
        self.operand(left)?;
        self.out.push_str(match operator {
            BinOpKind::ScAnd => " and ",
            BinOpKind::ScOr => " or ",
            _ => " in ",
        });
        self.operand(right)
    }

    fn comparison(&mut self, operator: CompareOpKind, left: &Expr<'_>, right: &Expr<'_>) -> Result<(), String> {
        let operator = match operator {
            CompareOpKind::Eq => BinOpKind::Eq,
            CompareOpKind::Ne => BinOpKind::Ne,
            CompareOpKind::Lt => BinOpKind::Lt,
            CompareOpKind::Lte => BinOpKind::Lte,
            CompareOpKind::Gt => BinOpKind::Gt,
            CompareOpKind::Gte => BinOpKind::Gte,
            CompareOpKind::In => BinOpKind::In,
            CompareOpKind::NotIn => {
                self.out.push_str("not ");
                BinOpKind::In
            }
        };
        self.out.push('(');
        self.binary(operator, left, right)?;
        self.out.push(')');
        Ok(())
    }

    fn filtered(&mut self, filter: &str, left: &Expr<'_>, right: &Expr<'_>) -> Result<(), String> {
        self.operand(left)?;
        self.out.push('|');
        self.out.push_str(filter);
        self.out.push('(');
        self.expression(right)?;
        self.out.push(')');
        Ok(())
    }

    fn constant(&mut self, constant: &ast::Spanned<ast::Const>) -> Result<(), String> {
        let (value, span) = (&constant.value, constant.span());
        if let Some(text) = value.as_str() {
            self.out.push_str(&serde_json::Value::from(text).to_string());
        } else if value.is_number() && !value.is_integer() {
            // As it is written, for a float may have rounded it.
            let written = self.source.get(span.start_offset as usize..span.end_offset as usize);
            let number = written.unwrap_or_default().replace('_', "");
            if number.parse::<f64>().ok() != f64::try_from(value.clone()).ok() {
                return Err("has a number that cannot be read: write it as a text, and use | float".into());
            }
            self.out.push_str(&format!("\"{number}\"|__number"));
        } else if value.is_number() && i64::try_from(value.clone()).is_err() {
            self.out.push_str(&format!("\"{value}\"|__number"));
        } else {
            self.out.push_str(&value.to_string());
        }
        Ok(())
    }

    fn items(&mut self, open: char, items: &[Expr<'_>], close: char) -> Result<(), String> {
        self.out.push(open);
        for (position, item) in items.iter().enumerate() {
            self.out.push_str(if position == 0 { "" } else { "," });
            self.expression(item)?;
        }
        self.out.push(close);
        Ok(())
    }

    fn arguments(&mut self, arguments: &[CallArg<'_>]) -> Result<(), String> {
        self.out.push('(');
        for (position, argument) in arguments.iter().enumerate() {
            self.out.push_str(if position == 0 { "" } else { "," });
            let (before, value) = match argument {
                CallArg::Pos(value) => (String::new(), value),
                CallArg::Kwarg(name, value) => (format!("{name}="), value),
                CallArg::PosSplat(value) => ("*".to_owned(), value),
                CallArg::KwargSplat(value) => ("**".to_owned(), value),
            };
            self.out.push_str(&before);
            self.expression(value)?;
        }
        self.out.push(')');
        Ok(())
    }

    /// Names of filters and tests that are arguments, as in `map('upper')`.
    fn check_named(&self, filter: &str, arguments: &[CallArg<'_>]) -> Result<(), String> {
        let named = |position: usize| match arguments.get(position) {
            Some(CallArg::Pos(Expr::Const(name))) => name.value.as_str(),
            _ => None,
        };
        match filter {
            "map" => named(0).map_or(Ok(()), |name| self.check_filter(name)),
            "select" | "reject" => named(0).map_or(Ok(()), |name| self.check_test(name)),
            "selectattr" | "rejectattr" => named(1).map_or(Ok(()), |name| self.check_test(name)),
            _ => Ok(()),
        }
    }

    fn check_filter(&self, name: &str) -> Result<(), String> {
        let tried = self.environment.empty_state().apply_filter(name, &[Value::UNDEFINED]);
        match tried.is_err_and(|error| error.kind() == ErrorKind::UnknownFilter) || name.starts_with("__") {
            true => Err(format!("uses the filter {name:?}, which does not exist")),
            false => Ok(()),
        }
    }

    fn check_test(&self, name: &str) -> Result<(), String> {
        let tried = self.environment.empty_state().perform_test(name, &[Value::UNDEFINED]);
        match tried.is_err_and(|error| error.kind() == ErrorKind::UnknownTest) {
            true => Err(format!("uses the test {name:?}, which does not exist")),
            false => Ok(()),
        }
    }
}

fn filter_of(operator: BinOpKind) -> Option<&'static str> {
    Some(match operator {
        BinOpKind::Add => "__add",
        BinOpKind::Sub => "__subtract",
        BinOpKind::Mul => "__multiply",
        BinOpKind::Div => "__divide",
        BinOpKind::FloorDiv => "__quotient",
        BinOpKind::Rem => "__remainder",
        BinOpKind::Pow => "__power",
        BinOpKind::Concat => "__concat",
        BinOpKind::Eq => "__eq",
        BinOpKind::Ne => "__ne",
        BinOpKind::Lt => "__lt",
        BinOpKind::Lte => "__le",
        BinOpKind::Gt => "__gt",
        BinOpKind::Gte => "__ge",
        BinOpKind::ScAnd | BinOpKind::ScOr | BinOpKind::In => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_become_filters_in_the_order_in_which_they_bind() {
        let mut environment = Environment::new();
        super::super::arithmetic::add_to(&mut environment);
        for (source, expected) in [
            ("input.a", "input.a"),
            ("1 + 2 * x", "(1)|__add((2)|__multiply(x))"),
            ("(a - b) - c", "a|__subtract(b)|__subtract(c)"),
            ("a - (b - c)", "a|__subtract(b|__subtract(c))"),
            ("-a ** 2", "(a|__negate)|__power(2)"),
            (r#"a ~ '\n"' ~ b"#, r#"a|__concat("\n\"")|__concat(b)"#),
            ("0.10 + a", r#"("0.10"|__number)|__add(a)"#),
            ("not a == b and c in d or e", "((not a|__eq(b)) and (c in d)) or e"),
            ("a < b <= c", "(a|__lt(b)) and (b|__le(c))"),
            ("a if b else c", "a if b else c"),
            ("a[1:n] | default('x', true) | length", "[a[1:n:],a,1,n][0]|default(\"x\",True)|length()"),
            ("a is defined and a is not none", "(a is defined) and (not (a is none))"),
            ("{'k': [1, a.b['c'], ()]}", r#"{"k":[1,a.b["c"],[]],}"#),
            ("uuid()", "uuid()"),
        ] {
            assert_eq!(exact(&environment, source).as_deref(), Ok(expected), "{source}");
        }
    }
}
