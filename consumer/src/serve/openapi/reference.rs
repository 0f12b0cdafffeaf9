//! Generates the book's page of the HTTP API from the OpenAPI document.

use std::fmt::Write as _;

use serde_json::Value;

use super::tests::routes;

/// Text on one line, for a table's cell.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

fn about(value: &Value) -> String {
    cell(value["description"].as_str().unwrap_or_default())
}

/// The type of a field or parameter, with a link if it has a schema of its own.
fn kind(schema: &Value) -> String {
    let list =
        |of: &Value| -> Vec<String> { of.as_array().unwrap().iter().map(kind).collect::<Vec<_>>() };
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    for any in ["oneOf", "anyOf", "allOf"] {
        if schema[any].is_array() {
            return list(&schema[any]).join(" or ");
        }
    }
    if schema["type"] == "array" || schema["items"].is_object() {
        return format!("list of {}", kind(&schema["items"]));
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        one => Vec::from_iter(one.as_str()),
    };
    let format = schema["format"].as_str();
    let format = format.map_or(String::new(), |format| format!(" ({format})"));
    format!("{}{format}", types.join(" or "))
}

fn fields(text: &mut String, schema: &Value) {
    for part in schema["allOf"].as_array().into_iter().flatten() {
        if part["$ref"].is_string() {
            writeln!(text, "| all of {} | | |", kind(part)).unwrap();
        }
        fields(text, part);
    }
    let required: Vec<&str> = match schema["required"].as_array() {
        Some(names) => names.iter().filter_map(Value::as_str).collect(),
        None => Vec::new(),
    };
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let optional = match required.contains(&name.as_str()) {
            true => "",
            false => ", may be absent",
        };
        let (kind, about) = (kind(field), about(field));
        writeln!(text, "| `{name}` | {kind}{optional} | {about} |").unwrap();
    }
}

#[test]
fn the_book_describes_the_api() {
    let document = serde_json::to_value(routes().document).unwrap();
    let mut text = String::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            writeln!(text, "## {} {path}\n", method.to_uppercase()).unwrap();
            for part in ["summary", "description"] {
                if let Some(part) = operation[part].as_str() {
                    writeln!(text, "{part}\n").unwrap();
                }
            }
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let mut parameters = parameters.peekable();
            if parameters.peek().is_some() {
                text.push_str("| Parameter | In | Type | |\n| --- | --- | --- | --- |\n");
            }
            for parameter in parameters {
                let (name, place) = (&parameter["name"], &parameter["in"]);
                let (name, place) = (name.as_str().unwrap(), place.as_str().unwrap());
                let (kind, about) = (kind(&parameter["schema"]), about(parameter));
                writeln!(text, "| `{name}` | {place} | {kind} | {about} |").unwrap();
            }
            text.push_str("\n| Status | Body | |\n| --- | --- | --- |\n");
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let contents = answer["content"].as_object().into_iter().flatten();
                let bodies = contents.map(|(media, content)| match kind(&content["schema"]) {
                    kind if kind.is_empty() => media.clone(),
                    kind => kind,
                });
                let bodies = bodies.collect::<Vec<_>>().join(", ");
                writeln!(text, "| {status} | {bodies} | {} |", about(answer)).unwrap();
            }
            text.push('\n');
        }
    }
    text.push_str("## Objects\n\n");
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        writeln!(text, "### {name}\n").unwrap();
        if !about(schema).is_empty() {
            writeln!(text, "{}\n", about(schema)).unwrap();
        }
        if let Some(values) = schema["enum"].as_array() {
            let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
            writeln!(text, "One of {}.\n", values.join(", ").replace('"', "")).unwrap();
            continue;
        }
        let mut rows = String::new();
        fields(&mut rows, schema);
        if !rows.is_empty() {
            writeln!(text, "| Field | Type | |\n| --- | --- | --- |\n{rows}").unwrap();
        }
    }
    service::testing::book::assert_generated("reference/http-api.md", "http-api", &text);
}
