//! The shipped model's prompts and token ids equal those that transformers made.

use std::fs;
use std::path::Path;

use cuelight::text::{ChatTemplateInput, Detokenizer, TextLimits, TextModel};
use serde_json::{Map, Value};

#[test]
fn prompts_ids_and_texts_equal_those_of_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden = fs::read_to_string(root.join("tests/fixtures/golden.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&golden).unwrap();
    assert_eq!(cases.len(), 16);
    let none = Map::new();
    for name in ["cuelight-tiny", "cuelight-tiny-draft"] {
        let model =
            TextModel::load(&root.join("models").join(name), TextLimits::default()).unwrap();
        for case in &cases {
            let prompt = model
                .render_chat(&ChatTemplateInput {
                    messages: case["messages"].as_array().unwrap(),
                    tools: case["tools"].as_array().map(Vec::as_slice),
                    documents: None,
                    add_generation_prompt: true,
                    continue_final_message: false,
                    kwargs: &none,
                })
                .unwrap();
            assert_eq!(prompt, case["prompt"]);
            let ids =
                |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
            let tokens = model.encode(&prompt, false).unwrap();
            assert_eq!(tokens, ids("prompt_ids"), "{prompt}");

            let mut detokenizer = Detokenizer::after_prompt(&model, &tokens, true);
            let mut text = String::new();
            for token in ids("greedy_ids") {
                detokenizer.push(&model, token, &mut text);
            }
            detokenizer.finish(&model, &mut text);
            assert_eq!(text, case["greedy_text"], "{prompt}");
        }
    }
}
