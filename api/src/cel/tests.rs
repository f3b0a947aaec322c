//! Expressions as rules use them.

use std::sync::Arc;

use serde_json::json;

use super::{Budget, CALL_COST_MAX, Cel, Expression, Type};
use crate::custom::structural::Structural;

fn run(source: &str, object: &serde_json::Value) -> Result<bool, String> {
    let expression = Expression::parse(source)?;
    let value = expression
        .evaluate(
            &[("self", Cel::from_json(object))],
            &mut Budget::new(CALL_COST_MAX),
        )
        .map_err(|error| error.to_string())?;
    match value {
        Cel::Bool(flag) => Ok(flag),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn expressions_hold() {
    let object = json!({"a": 1, "b": "text", "list": [1, 2, 3], "map": {"k": "v"}, "items": [{"n": "x", "v": 1}, {"n": "y", "v": 2}],
        "u": "https://user@example.com:8080/a/b?q=1&q=2", "float": 1.5});
    for source in [
        "self.a + 1 == 2 && self.b == 'text'",
        "self.list.all(x, x > 0) && self.list.exists(x, x == 2) && self.list.exists_one(x, x == 3)",
        "self.list.map(x, x * 2) == [2, 4, 6] && self.list.filter(x, x > 1).size() == 2",
        "has(self.a) && !has(self.z)",
        "self.map.all(k, self.map[k] == 'v') && 'k' in self.map && !('z' in self.map)",
        "self.items.all(i, self.items.exists_one(j, j.n == i.n))",
        "self.b.startsWith('te') && self.b.matches('^[a-z]+$') && self.b.size() == 4 && self.b.contains('ex')",
        "'a,b'.split(',') == ['a', 'b'] && ['a', 'b'].join('-') == 'a-b' && 'Ab'.lowerAscii() == 'ab'",
        "'%s has %d'.format(['x', 3]) == 'x has 3'",
        "self.list.isSorted() && self.list.sum() == 6 && self.list.max() == 3 && self.list.indexOf(2) == 1",
        "'abc 123'.find('[0-9]+') == '123' && '1 2'.findAll('[0-9]') == ['1', '2']",
        "url(self.u).getHost() == 'example.com:8080' && url(self.u).getPort() == '8080' && url(self.u).getQuery()['q'] == ['1', '2']",
        "isURL('https://x/y') && !isURL('no url')",
        "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('x') && ip('127.0.0.1').isLoopback() && ip.isCanonical('::1')",
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && cidr('10.1.0.0/16').masked().prefixLength() == 16",
        "quantity('1Gi').isGreaterThan(quantity('100Mi')) && quantity('1k').asInteger() == 1000 && quantity('1').add(quantity('2')).compareTo(quantity('3')) == 0",
        "duration('1h') > duration('30m') && timestamp('2026-01-01T00:00:00Z') + duration('24h') == timestamp('2026-01-02T00:00:00Z')",
        "timestamp('2026-01-02T03:04:05Z').getHours() == 3",
        "self.?z.orValue('none') == 'none' && self.?a.hasValue() && self.?a.value() == 1",
        "optional.of(1).optMap(x, x + 1).value() == 2",
        "self.list[0] == 1 && self.items[1].v == 2",
        "self.z == 1 || self.a == 1",
        "self.a == 1 ? true : self.z",
        "type(self.a) == int && string(self.a) == '1' && int('3') == 3",
        "[1, 2] + [3] == self.list && {'a': 1} == {'a': 1}",
        "format.dns1123Label().validate('ok') == optional.none() && format.dns1123Label().validate('No!').hasValue()",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('1.2.3').minor() == 2",
        "self.float == 1.5 && 1 < 1.5 && -self.a == -1 && 7 % 4 == 3",
    ] {
        assert_eq!(run(source, &object), Ok(true), "case: {source}");
    }
}

#[test]
fn failures_are_said_as_upstream_says_them() {
    let object = json!({"list": [1], "s": "x"});
    for (source, why) in [
        ("self.z == 1", "no such key: z"),
        ("self.list[3] == 1", "index out of bounds: 3"),
        ("1 / 0 == 1", "division by zero"),
        ("9223372036854775807 + 1 > 0", "integer overflow"),
        ("self.s + 1 == 2", "no such overload: _+_(string, int)"),
    ] {
        assert_eq!(run(source, &object), Err(why.to_owned()), "case: {source}");
    }
}

#[test]
fn what_costs_too_much_is_cancelled() {
    let many: Vec<i32> = vec![1; 2000];
    let why = run("self.all(x, self.all(y, x == y))", &json!(many)).unwrap_err();
    assert_eq!(why, "operation cancelled: actual cost limit exceeded");
}

fn check(source: &str, schema: serde_json::Value) -> Result<u64, String> {
    let schema = Arc::new(Structural::parse(&schema));
    let type_ = Type::of_schema(&schema, false).unwrap();
    Expression::parse(source)?
        .check(&[("self", type_)])
        .map(|checked| checked.cost)
}

#[test]
fn mistakes_are_found_before_anything_is_evaluated() {
    let schema = json!({"type": "object", "properties": {"x": {"type": "integer"}, "s": {"type": "string"}, "namespace": {"type": "string"},
        "list": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "string"}}}}, "ios": {"x-kubernetes-int-or-string": true}}});
    for (source, why) in [
        ("self.z == 100", "undefined field 'z'"),
        ("self.list.all(i, i.q == '')", "undefined field 'q'"),
        (
            "self.x == 'a'",
            "found no matching overload for '_==_' applied to '(int, string)'",
        ),
        (
            "self.x + self.s == ''",
            "found no matching overload for '_+_' applied to '(int, string)'",
        ),
        ("other.x == 1", "undeclared reference to 'other'"),
        ("self.s.nope()", "undeclared reference to 'nope'"),
        ("self = 42", "Syntax error"),
        (
            "self.x.startsWith('a')",
            "found no matching overload for 'startsWith'",
        ),
    ] {
        let found = check(source, schema.clone()).unwrap_err();
        assert!(found.contains(why), "case: {source}: {found}");
    }
    for good in [
        "self.ios == 1 || self.ios == '50%'",
        "self.list.map(i, i.n).all(n, n != '')",
        "self.__namespace__ == 'a'",
        "[['a']][?0][0].orValue('') == 'a'",
        "self.list.filter(i, i.n == 'a').size() == 1 && self.x > 0",
    ] {
        assert!(
            check(good, schema.clone()).is_ok(),
            "case: {good}: {:?}",
            check(good, schema.clone())
        );
    }
}

#[test]
fn costs_grow_with_what_is_not_bounded() {
    let strings = |max: Option<u64>| {
        let mut schema = json!({"type": "array", "items": {"type": "string"}});
        if let Some(max) = max {
            schema["maxItems"] = max.into();
        }
        schema
    };
    let twice = "self.all(x, self.all(y, x == y))";
    assert!(check(twice, strings(Some(10))).unwrap() < 10_000);
    assert!(check(twice, strings(None)).unwrap() > 10_000_000);
}

#[test]
fn what_is_taken_of_an_optional_is_optional() {
    let object = json!({"extra": {"node": ["n1"]}});
    for (source, expected) in [
        ("self.extra[?'node'][0].orValue('') == 'n1'", true),
        ("self.extra[?'none'][0].orValue('') == ''", true),
        ("self.extra[?'node'][?1].hasValue()", false),
    ] {
        assert_eq!(run(source, &object), Ok(expected), "case: {source}");
    }
}
