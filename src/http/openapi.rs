//! The OpenAPI document, written by hand; tests compare it with the routes and the status table.

/// What `GET /openapi.json` answers.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::http::app::ROUTES;
    use crate::http::errors::Problem;
    use crate::http::openai::{Limits, chat, completions, tokens};

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    #[test]
    fn the_document_names_the_routes_and_no_others() {
        let document = document();
        let mut documented = Vec::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for method in operations.as_object().unwrap().keys() {
                documented.push((path.as_str(), method.as_str()));
            }
        }
        documented.sort_unstable();
        let mut routes = ROUTES.to_vec();
        routes.sort_unstable();
        assert_eq!(documented, routes);
    }

    #[test]
    fn the_document_has_this_builds_version() {
        assert_eq!(document()["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn the_document_names_every_status_of_the_table() {
        let document = document();
        let operations = document["paths"].as_object().unwrap().values();
        let documented: Vec<&String> = operations
            .flat_map(|path| path.as_object().unwrap().values())
            .flat_map(|operation| operation["responses"].as_object().unwrap().keys())
            .collect();
        for problem in Problem::ALL {
            let status = problem.row().0.as_u16().to_string();
            assert!(documented.contains(&&status), "{problem:?}: {status}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(value: &Value, root: &Value) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(target)) = map.get("$ref") {
                        let pointer = target.strip_prefix('#').unwrap();
                        assert!(root.pointer(pointer).is_some(), "{target}");
                    }
                    map.values().for_each(|value| walk(value, root));
                }
                Value::Array(items) => items.iter().for_each(|value| walk(value, root)),
                _ => {}
            }
        }
        let document = document();
        walk(&document, &document);
    }

    #[test]
    fn every_example_is_a_request_that_is_taken() {
        let document = document();
        let example = |path: &str| {
            let content = &document["paths"][path]["post"]["requestBody"]["content"];
            content["application/json"]["example"].to_string().into_bytes()
        };
        let limits = Limits { max_choices: 1 };
        chat::parse(&example("/v1/chat/completions"), limits).unwrap();
        completions::parse(&example("/v1/completions"), limits).unwrap();
        tokens::parse_tokenize(&example("/tokenize")).unwrap();
        tokens::parse_detokenize(&example("/detokenize")).unwrap();
        serde_json::from_slice::<crate::actors::faults::Fault>(&example("/debug/faults")).unwrap();
    }

    #[test]
    fn every_parameter_in_the_document_is_checked() {
        // A value that no parameter takes must be refused under each documented name.
        let document = document();
        type Case = (&'static str, &'static str, fn(&[u8]) -> bool);
        let cases: [Case; 2] = [
            ("ChatCompletionRequest", r#""messages":[{"role":"user","content":"a"}]"#, |body| {
                chat::parse(body, Limits { max_choices: 1 }).is_err()
            }),
            ("CompletionRequest", r#""prompt":"a""#, |body| {
                completions::parse(body, Limits { max_choices: 1 }).is_err()
            }),
        ];
        for (schema, input, refuses) in cases {
            let names =
                document["components"]["schemas"][schema]["properties"].as_object().unwrap();
            for name in names.keys() {
                let body = format!(r#"{{"model":"m",{input},"{name}":[[[]]]}}"#);
                assert!(refuses(body.as_bytes()), "{schema}: {name}");
            }
            let plain = format!(r#"{{"model":"m",{input}}}"#);
            assert!(!refuses(plain.as_bytes()), "{schema}");
        }
    }
}
