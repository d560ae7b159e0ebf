//! A small checker of values against the document's schemas: type, required, properties, enum, references, and
//! nothing that is not described.

use serde_json::Value;

/// Every way in which `value` is not what `schema` says, each with its place.
pub(crate) fn faults(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut found = vec![];
    check(document, schema, value, "", &mut found);
    found
}

fn is_of_type(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("a type that is none: {other}"),
    }
}

fn check(document: &Value, schema: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let pointer = reference.trim_start_matches('#');
        let target = document
            .pointer(pointer)
            .unwrap_or_else(|| panic!("{reference} leads nowhere"));
        return check(document, target, value, place, found);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let fits = |choice: &&Value| faults(document, choice, value).is_empty();
        if choices.iter().filter(fits).count() != 1 {
            found.push(format!("{place}: {value} is not one of its kinds"));
        }
        return;
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    if !types.is_empty() && !types.iter().any(|name| is_of_type(name, value)) {
        found.push(format!("{place}: {value} is not {types:?}"));
        return;
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        found.push(format!("{place}: {value} is not in the list"));
    }
    if let (Some(least), Some(number)) = (schema["minimum"].as_f64(), value.as_f64())
        && number < least
    {
        found.push(format!("{place}: {value} is less than {least}"));
    }
    if let Value::Array(items) = value {
        for (number, item) in items.iter().enumerate() {
            let place = format!("{place}/{number}");
            check(document, &schema["items"], item, &place, found);
        }
    }
    let Value::Object(fields) = value else {
        return;
    };
    for name in schema["required"].as_array().into_iter().flatten() {
        if !fields.contains_key(name.as_str().unwrap()) {
            found.push(format!("{place}: {name} is missing"));
        }
    }
    // A schema without properties is a map, or says nothing of its fields.
    let properties = schema["properties"].as_object();
    for (name, value) in fields {
        let place = format!("{place}/{name}");
        match (properties.and_then(|all| all.get(name)), properties) {
            (Some(property), _) => check(document, property, value, &place, found),
            (None, Some(_)) => found.push(format!("{place}: is not described")),
            (None, None) => check(
                document,
                &schema["additionalProperties"],
                value,
                &place,
                found,
            ),
        }
    }
}

#[test]
fn the_checker_finds_every_kind_of_fault() {
    use serde_json::json;
    let document = json!({"of": {"type": "string", "enum": ["a", "b"]}});
    let schema = json!({
        "type": "object",
        "required": ["one"],
        "properties": {
            "one": {"$ref": "#/of"},
            "many": {"type": ["array", "null"], "items": {"type": "integer", "minimum": 1}},
            "map": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    });
    let faults = |value: Value| faults(&document, &schema, &value);
    let good = json!({"one": "a", "many": [1, 2], "map": {"x": "y"}});
    assert_eq!(faults(good), Vec::<String>::new());
    assert_eq!(
        faults(json!({"one": "a", "many": null})),
        Vec::<String>::new()
    );
    assert_eq!(faults(json!([])), [": [] is not [\"object\"]"]);
    assert_eq!(faults(json!({})), [": \"one\" is missing"]);
    assert_eq!(
        faults(json!({"one": "c", "two": 2, "many": [0, "x"], "map": {"x": 1}})),
        [
            "/many/0: 0 is less than 1",
            "/many/1: \"x\" is not [\"integer\"]",
            "/map/x: 1 is not [\"string\"]",
            "/one: \"c\" is not in the list",
            "/two: is not described",
        ]
    );
}
