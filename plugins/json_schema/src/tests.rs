use pointsman_sdk::testing::{FilterHost, OpenFilterSession, counted, facts};

use super::*;

fn session(config: Value) -> OpenFilterSession<JsonSchemaSession> {
    let mut host = FilterHost::<JsonSchema>::start(config).unwrap();
    host.open(facts()).unwrap()
}

/// Each of `valid` passes; each of `invalid` is closed with the reason behind it.
#[track_caller]
fn check(schema: Value, valid: &[&str], invalid: &[(&str, &str)]) {
    let mut session = session(json!({"schema": schema}));
    for text in valid {
        let verdict = session.from_client(Message::text(*text));
        assert_eq!(verdict, Verdict::Forward, "{text} with {schema}");
    }
    for (text, reason) in invalid {
        let verdict = session.from_client(Message::text(*text));
        let expected = Verdict::Close(Close::new(1008, *reason));
        assert_eq!(verdict, expected, "{text} with {schema}");
    }
}

#[test]
fn values_are_checked() {
    check(json!({}), &["null", "{}", "[1]"], &[]);
    check(
        json!({"type": "integer"}),
        &["1", "1.0", "1e2"],
        &[("1.5", "type"), ("\"1\"", "type")],
    );
    check(
        json!({"type": ["null", "string"]}),
        &["null", "\"\""],
        &[("false", "type")],
    );
    check(
        json!({"enum": [1, "a", null, {"b": [1]}]}),
        &["1.0", "\"a\"", "null", r#"{"b":[1.0]}"#],
        &[("\"b\"", "enum"), ("{}", "enum"), ("0", "enum")],
    );
    check(
        json!({"const": [0, {"a": 1}]}),
        &[r#"[0,{"a":1}]"#],
        &[("[false,{}]", "const"), ("[0]", "const")],
    );
    check(
        json!({"minimum": 1, "maximum": 3}),
        &["1", "3.0", "\"9\""],
        &[("0.9", "minimum"), ("4", "maximum")],
    );
    check(
        json!({"exclusiveMinimum": 1, "exclusiveMaximum": 3}),
        &["1.1", "2"],
        &[("1", "exclusiveMinimum"), ("3.0", "exclusiveMaximum")],
    );
    check(
        json!({"maximum": u64::MAX}),
        &["18446744073709551615"],
        &[("18446744073709551616000", "maximum")],
    );
    check(
        json!({"multipleOf": 3}),
        &["0", "-9", "9.0", "18446744073709551615"],
        &[("10", "multipleOf")],
    );
    check(
        json!({"multipleOf": 0.0001}),
        &["0.0075", "5"],
        &[("0.00751", "multipleOf")],
    );
    check(
        json!({"minLength": 2, "maxLength": 3}),
        &["\"üü\"", "\"\\ud83d\\ude00ab\"", "1"],
        &[("\"ü\"", "minLength"), ("\"abcd\"", "maxLength")],
    );
    check(
        json!({"pattern": "^[a-z]+\\/$"}),
        &["\"ab/\"", "5"],
        &[("\"Ab/\"", "pattern"), ("\"ab/\\n\"", "pattern")],
    );
}

#[test]
fn lists_are_checked() {
    check(
        json!({"minItems": 1, "maxItems": 2}),
        &["[1]", "{}"],
        &[("[]", "minItems"), ("[1,2,3]", "maxItems")],
    );
    check(
        json!({"uniqueItems": true}),
        &["[1,true,[1]]"],
        &[
            ("[1,2,1.0]", "/2: uniqueItems"),
            (r#"[{"a":1,"b":2},{"b":2,"a":1}]"#, "/1: uniqueItems"),
        ],
    );
    check(
        json!({"items": {"type": "string"}}),
        &["[]", "[\"a\"]"],
        &[("[\"a\",1]", "/1: type")],
    );
    check(
        json!({"prefixItems": [{"type": "string"}], "items": false}),
        &["[\"a\"]"],
        &[("[1]", "/0: type"), ("[\"a\",1]", "/1: items")],
    );
    check(
        json!({"contains": {"type": "null"}}),
        &["[1,null]"],
        &[("[1]", "contains")],
    );
    check(
        json!({"contains": {"type": "null"}, "minContains": 0, "maxContains": 1}),
        &["[1]", "[null]"],
        &[("[null,null]", "maxContains")],
    );
}

#[test]
fn objects_are_checked() {
    check(
        json!({"minProperties": 1, "maxProperties": 1}),
        &[r#"{"a":1}"#],
        &[
            ("{}", "minProperties"),
            (r#"{"a":1,"b":1}"#, "maxProperties"),
        ],
    );
    check(
        json!({"required": ["a"]}),
        &[r#"{"a":null}"#, "[]"],
        &[(r#"{"b":1}"#, "/a: required")],
    );
    check(
        json!({"propertyNames": {"maxLength": 1}}),
        &[r#"{"a":1}"#],
        &[(r#"{"ab":1}"#, "/ab: propertyNames")],
    );
    check(
        json!({"properties": {"a": {"type": "null"}, "no": false}, "patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": {"type": "string"}}),
        &[r#"{"a":null,"x-a":1,"b":"c"}"#],
        &[
            (r#"{"a":1}"#, "/a: type"),
            (r#"{"no":1}"#, "/no: properties"),
            (r#"{"x-a":"b"}"#, "/x-a: type"),
            (r#"{"b":1}"#, "/b: type"),
        ],
    );
    check(
        json!({"properties": {"a": {}}, "additionalProperties": false}),
        &[r#"{"a":1}"#],
        &[(r#"{"a/b~":1}"#, "/a~1b~0: additionalProperties")],
    );
    check(
        json!({"dependentRequired": {"a": ["b"]}}),
        &["{}", r#"{"a":1,"b":1}"#],
        &[(r#"{"a":1}"#, "/b: dependentRequired")],
    );
    check(
        json!({"dependentSchemas": {"a": {"maxProperties": 1}}}),
        &[r#"{"b":1,"c":2}"#],
        &[(r#"{"a":1,"b":1}"#, "maxProperties")],
    );
}

#[test]
fn schemas_are_combined() {
    check(
        json!({"allOf": [{"type": "integer"}, {"minimum": 1}]}),
        &["1"],
        &[("0", "minimum"), ("1.5", "type")],
    );
    check(
        json!({"anyOf": [{"type": "integer"}, {"minimum": 1}]}),
        &["0", "1.5"],
        &[("0.5", "anyOf")],
    );
    check(
        json!({"oneOf": [{"type": "integer"}, {"minimum": 1}]}),
        &["0", "1.5"],
        &[("0.5", "oneOf"), ("1", "oneOf")],
    );
    check(
        json!({"not": {"type": "integer"}}),
        &["0.5"],
        &[("1", "not")],
    );
    check(
        json!({"if": {"type": "integer"}, "then": {"minimum": 1}, "else": false}),
        &["1"],
        &[("0", "minimum"), ("\"\"", "else")],
    );
    check(json!({"then": false, "else": false}), &["1"], &[]);
    let tree = json!({"$ref": "#/$defs/a%25~1b", "$defs": {"a%/b": {"required": ["v"], "properties": {"next": {"$ref": "#"}}}}});
    check(
        tree,
        &[r#"{"v":1,"next":{"v":2}}"#],
        &[(
            r#"{"v":1,"next":{"v":2,"next":{}}}"#,
            "/next/next/v: required",
        )],
    );
}

#[test]
fn draft_07_is_read_as_it_was() {
    let draft = |mut schema: Value| {
        schema["$schema"] = "http://json-schema.org/draft-07/schema#".into();
        schema
    };
    check(
        draft(json!({"items": [{"type": "string"}], "additionalItems": {"type": "null"}})),
        &["[\"a\",null]"],
        &[("[\"a\",1]", "/1: type")],
    );
    check(
        draft(json!({"items": {"type": "string"}, "additionalItems": false})),
        &["[\"a\",\"b\"]"],
        &[],
    );
    check(
        draft(json!({"dependencies": {"a": ["b"], "c": {"maxProperties": 1}}})),
        &["{}", r#"{"c":1}"#],
        &[
            (r#"{"a":1}"#, "/b: required"),
            (r#"{"c":1,"d":1}"#, "maxProperties"),
        ],
    );
    check(
        draft(
            json!({"definitions": {"a": {"type": "null"}}, "properties": {"a": {"$ref": "#/definitions/a", "not": {}}}}),
        ),
        &[r#"{"a":null}"#],
        &[(r#"{"a":1}"#, "/a: type")],
    );
}

#[test]
fn the_operator_chooses_what_becomes_of_the_invalid() {
    let schema = json!({"properties": {"a": {"type": "null"}}});
    let with = |on_invalid: &str| session(json!({"schema": schema, "on_invalid": on_invalid}));
    let invalid = || Message::text(r#"{"a":1}"#);
    let close = |code, reason: &str| Verdict::Close(Close::new(code, reason));

    let mut closes = with("close");
    assert_eq!(closes.from_client(invalid()), close(1008, "/a: type"));
    for text in ["", "{", "{} {}", "1e999", &"[".repeat(200)] {
        assert_eq!(
            closes.from_client(Message::text(text)),
            close(1007, "not JSON"),
            "{text}"
        );
    }
    let long = "x".repeat(64 << 10);
    assert_eq!(
        closes.from_client(Message::text(format!("\"{long}\""))),
        close(1009, "too long")
    );
    assert_eq!(["invalid", "not_json", "too_long"].map(counted), [1, 5, 1]);

    let mut answers = with("answer");
    let answer = |json: &str| Verdict::Answer(vec![Message::text(json)]);
    assert_eq!(
        answers.from_client(invalid()),
        answer(r#"{"error":"type","path":"/a","type":"error"}"#)
    );
    assert_eq!(
        answers.from_client(Message::text("?")),
        answer(r#"{"error":"not JSON","path":"","type":"error"}"#)
    );
    let mut drops = with("drop");
    assert_eq!(drops.from_client(invalid()), Verdict::Drop);
    assert_eq!(drops.from_client(Message::text("{")), Verdict::Drop);
}

#[test]
fn a_reason_fits_a_close_frame() {
    let name = "ü".repeat(100);
    let mut session = session(json!({"schema": {"additionalProperties": false}}));
    let Verdict::Close(close) = session.from_client(Message::text(format!(r#"{{"{name}":1}}"#)))
    else {
        panic!("not closed");
    };
    assert!((121..=123).contains(&close.reason.len()), "{close:?}");
    assert!(
        close.reason.starts_with("...ü") && close.reason.ends_with("ü: additionalProperties"),
        "{close:?}"
    );
}

#[test]
fn only_what_is_asked_for_is_looked_at() {
    let binary = || Message::binary("{");
    let text = || Message::text("{");
    let close = || Verdict::Close(Close::new(1003, "not text"));
    let invalid = || Verdict::Close(Close::new(1007, "not JSON"));
    let pass = || Verdict::Forward;
    for (directions, kind, from_client, from_backend) in [
        (
            "from_client",
            "forward",
            [invalid(), pass()],
            [pass(), pass()],
        ),
        (
            "from_client",
            "close",
            [invalid(), close()],
            [pass(), pass()],
        ),
        (
            "from_backend",
            "drop",
            [pass(), pass()],
            [invalid(), Verdict::Drop],
        ),
        ("both", "close", [invalid(), close()], [invalid(), close()]),
    ] {
        let mut session = session(json!({"schema": {}, "directions": directions, "binary": kind}));
        let got = [text(), binary()].map(|message| session.from_client(message));
        assert_eq!(got, from_client, "{directions} {kind}");
        let got = [text(), binary()].map(|message| session.from_backend(message));
        assert_eq!(got, from_backend, "{directions} {kind}");
    }
}

#[test]
fn a_message_that_asks_for_too_much_work_is_invalid() {
    let branch = |name: &str| json!({"properties": {"a": {"$ref": "#"}, name: {"type": "string"}}});
    let exponential = json!({"type": "object", "anyOf": [branch("x"), branch("y")]});
    let nested = format!("{}1{}", r#"{"a":"#.repeat(60), "}".repeat(60));
    // One number each, of one hash: as numbers with fractions all of them are 2^63.
    let near: Vec<u64> = (1 << 63..).take(1000).collect();
    let cases = [
        (exponential, nested),
        (json!({"uniqueItems": true}), format!("{near:?}")),
        (
            json!({"not": {"pattern": "a{0,200}b"}}),
            format!("\"{}\"", "a".repeat(2000)),
        ),
        (
            json!({"propertyNames": {"pattern": "a{0,200}b"}}),
            format!(r#"{{"{}":1}}"#, "a".repeat(2000)),
        ),
    ];
    for (schema, text) in cases {
        let mut session = session(json!({"schema": schema}));
        let Verdict::Close(close) = session.from_client(Message::text(text)) else {
            panic!("{schema} was done");
        };
        assert!(close.reason.ends_with("too much work"), "{close:?}");
        assert_eq!(["invalid", "too_much_work"].map(counted), [0, 1]);
    }
    let mut session = session(json!({"schema": {"uniqueItems": true}, "max_steps": 2_000_000}));
    assert_eq!(
        session.from_client(Message::text(format!("{near:?}"))),
        Verdict::Forward
    );
}

#[test]
fn a_union_tries_the_members_that_tell_its_kinds_apart_first() {
    let kind = |op: &str| json!({"required": ["args", "op"], "properties": {"args": {"items": {"$ref": "#"}}, "op": {"const": op}}});
    let tree = json!({"oneOf": [kind("and"), kind("or"), {"properties": {"op": {"const": "is"}}, "required": ["op"]}]});
    let deep = format!(
        "{}{}{}",
        r#"{"args":["#.repeat(60),
        r#"{"op":"is"}"#,
        r#"],"op":"or"}"#.repeat(60)
    );
    check(
        tree,
        &[&deep],
        &[(r#"{"args":[{"op":"no"}],"op":"or"}"#, "oneOf")],
    );
}

#[test]
fn items_are_unique_by_value() {
    let numbers: Vec<u32> = (0..10_000).collect();
    let numbers = format!("{numbers:?}");
    let objects: Vec<String> = (0..4000).map(|n| format!("{{\"a\":{n}}}")).collect();
    let objects = format!("[{}]", objects.join(","));
    check(
        json!({"uniqueItems": true}),
        &[
            &numbers,
            &objects,
            r#"[0, false, null, "", [], {}, "0", [0], {"": 0}, 9007199254740993, 9007199254740992]"#,
        ],
        &[
            ("[0, -0.0]", "/1: uniqueItems"),
            ("[3, 2, 1, 2, 1]", "/3: uniqueItems"),
            (r#"["a\u0062", "ab"]"#, "/1: uniqueItems"),
            (r#"[[1, [true]], [1.0, [true]]]"#, "/1: uniqueItems"),
        ],
    );
}

#[test]
fn a_wrong_configuration_is_refused() {
    let refused = |config: Value| FilterHost::<JsonSchema>::start(config).unwrap_err();
    let check = |schema: Value, expected: &str| {
        assert_eq!(
            refused(json!({"schema": schema})),
            format!("schema{expected}")
        );
    };
    check(
        json!(5),
        ": not allowed: a table, or the text of a JSON object",
    );
    check(
        json!("[]"),
        ": not allowed: a table, or the text of a JSON object",
    );
    check(
        json!("{"),
        ": not JSON: EOF while parsing an object at line 1 column 1",
    );
    check(
        json!({"properties": {"a": {"minlength": 1}}}),
        "/properties/a/minlength: unknown or not supported in this draft: see the plugin's list of keywords",
    );
    check(
        json!({"unevaluatedProperties": false}),
        "/unevaluatedProperties: unknown or not supported in this draft: see the plugin's list of keywords",
    );
    check(
        json!({"properties": {"a": 1}}),
        "/properties/a: 1 is not allowed: a schema: a table, true or false",
    );
    check(
        json!({"type": "text"}),
        "/type: \"text\" is not allowed: \"null\", \"boolean\", \"integer\", \"number\", \"string\", \"array\", \"object\", or a list of them",
    );
    check(
        json!({"multipleOf": 0}),
        "/multipleOf: 0 is not allowed: a number above 0",
    );
    check(
        json!({"maxLength": -1}),
        "/maxLength: -1 is not allowed: a whole number from 0",
    );
    check(
        json!({"required": "a"}),
        "/required: \"a\" is not allowed: a list",
    );
    check(json!({"enum": {}}), "/enum: {} is not allowed: a list");
    check(
        json!({"uniqueItems": 1}),
        "/uniqueItems: 1 is not allowed: true or false",
    );
    check(
        json!({"allOf": [{}, {"$id": "x"}]}),
        "/allOf/1/$id: only the whole schema may have one",
    );
    check(
        json!({"$schema": "http://json-schema.org/draft-04/schema#"}),
        "/$schema: \"http://json-schema.org/draft-04/schema#\" is not allowed: \"https://json-schema.org/draft/2020-12/schema\" or \"http://json-schema.org/draft-07/schema\"",
    );
    let places = "\"#\", or \"#/\" and the place of a schema in this document";
    for reference in ["https://example.org/a.json", "a.json", "#anchor", "#/%zz"] {
        check(
            json!({"$ref": reference}),
            &format!("/$ref: {reference:?} is not allowed: {places}"),
        );
    }
    check(
        json!({"$ref": "#/$defs/a"}),
        &format!("/$ref: \"#/$defs/a\" leads nowhere: {places}"),
    );
    for schema in [
        json!({"$ref": "#"}),
        json!({"anyOf": [{"not": {"$ref": "#"}}]}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"if": {"$ref": "#/$defs/b"}}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}}),
    ] {
        check(schema, ": a schema refers to itself in a circle");
    }
    for pattern in ["(", "(?=a)", "(a)\\1", "\\p{Letter}", "(?:a{0,99}){99}"] {
        let error = refused(json!({"schema": {"pattern": pattern}}));
        assert!(
            error.starts_with(&format!("schema/pattern: {pattern:?} is not allowed: ")),
            "{error}"
        );
    }
    for bound in [0, (16 << 20) + 1] {
        assert_eq!(
            refused(json!({"schema": {}, "max_bytes": bound})),
            format!("max_bytes: {bound} is not allowed: 1 to 16777216")
        );
    }
    assert_eq!(refused(json!({})), "missing field `schema`");
    assert_eq!(
        refused(json!({"schema": {}, "on_invalid": "stop"})),
        "on_invalid: unknown variant `stop`, expected one of `close`, `answer`, `drop`"
    );
}

/// TOML has no `null`.
#[test]
fn a_schema_may_be_text() {
    check(json!(r#"{"enum": [null]}"#), &["null"], &[("1", "enum")]);
}
