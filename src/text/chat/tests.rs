//! The promises of chat templates, on templates written for each of them.

use serde_json::json;

use super::*;
use crate::text::config::TemplateSources;

const FUEL: u64 = 100_000;

fn compile(template: &str) -> Result<ChatTemplates, TextError> {
    let special = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let config = TokenizerConfig {
        special_tokens: special.as_object().unwrap().clone(),
        templates: TemplateSources {
            path: "chat_template.jinja".into(),
            default: Some(template.to_owned()),
            tool_use: Some("tools: {{ tools|tojson }}".to_owned()),
        },
        wrap: None,
    };
    ChatTemplates::compile(&config, FUEL).map(Option::unwrap)
}

fn render(template: &str, messages: Json) -> Result<String, TextError> {
    let none = Map::new();
    let messages = messages.as_array().unwrap();
    compile(template)?.render(&ChatTemplateInput {
        messages,
        tools: None,
        documents: None,
        add_generation_prompt: true,
        continue_final_message: false,
        kwargs: &none,
    })
}

/// The expectations are what Jinja2 3.1 writes, set up as transformers does.
#[test]
fn templates_render_as_jinja2_renders_them() {
    let messages = json!([{"role": "system", "content": "S"}, {"role": "user", "content": " Hi "}]);
    let cases = [
        ("{{ bos_token }}{{ pad_token }}{{ eos_token }}", "<s></s>"),
        (
            "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content | trim }}\n  {% endif %}\n{% endfor %}\n",
            "Hi\n",
        ),
        (
            "{%- for m in messages[1:] -%} {{ m['content'].strip() }}{{ loop.last }} {%- endfor -%}",
            "HiTrue",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        (
            "{% for m in messages %}{% if loop.index0 == 0 %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
            "user",
        ),
        ("{{ 'yes' if tools is none and documents is none else 'no' }}", "yes"),
        ("{{ 'yes' if tools is defined and undefined_thing is not defined else 'no' }}", "yes"),
        ("{{ messages[-1].content.split('H')[-1].rstrip() ~ 'a,b'.split(',')[0].upper() }}", "iA"),
        ("{{ messages[0].content.startswith('S') and not 'x' in messages[0] }}", "True"),
        (
            "{{ none }} {{ true }} {{ 1.0 }} {{ [1, 'a'] }} {{ {'k': none} }}",
            "None True 1.0 [1, 'a'] {'k': None}",
        ),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(messages|length) }}", "<2>"),
        ("{{ messages | map(attribute='role') | join(',') }}", "system,user"),
        (
            "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
            "role=system;content=S;",
        ),
        ("{% generation %}{{ 1 }}{%- endgeneration -%} x", "1x"),
        (
            "{{ tools is iterable }}{{ tools is sequence }}{{ 1 is iterable }}{{ 1 is sequence }}",
            "FalseFalseFalseFalse",
        ),
        (
            "{{ 'a' is iterable }}{{ 'a' is sequence }}{{ messages is sequence }}{{ nothing is iterable }}",
            "TrueTrueTrueTrue",
        ),
        (
            "{{ messages[0] is sequence }}{{ messages[0] is iterable }}{{ messages[1:] is sequence }}{{ messages[0] is mapping }}",
            "TrueTrueTrueTrue",
        ),
        ("{{ 'a' if add_generation_prompt }}{{ messages[0].get('name', 'anon') }}", "aanon"),
        (
            "{{ messages[5] is defined }}{{ (messages|selectattr('role', 'equalto', 'user')|list)|length }}",
            "False1",
        ),
    ];
    for (template, wanted) in cases {
        assert_eq!(render(template, messages.clone()), Ok(wanted.to_owned()), "{template}");
    }
}

#[test]
fn a_template_that_refuses_is_quoted_and_one_that_fails_says_where() {
    let user = json!([{"role": "user", "content": "x"}]);
    let refused = render("{{ raise_exception('roles must ' + 'alternate') }}", user.clone());
    assert_eq!(refused, Err(TextError::Refused { message: "roles must alternate".to_owned() }));
    let nested = "{% macro f() %}{{ raise_exception('in a macro') }}{% endmacro %}{{ f() }}";
    let refused = render(nested, user.clone());
    assert_eq!(refused, Err(TextError::Refused { message: "in a macro".to_owned() }));
    let failed = render("a\n{{ messages[0].nothing.more }}", user.clone()).unwrap_err();
    assert!(matches!(failed, TextError::TemplateFailed { .. }), "{failed}");
    assert!(failed.to_string().contains("default:2"), "{failed}");
    let broken = render("{% if %}", user).unwrap_err();
    let shown = broken.to_string();
    assert!(
        shown.starts_with("chat_template.jinja: chat_template default: syntax error"),
        "{shown}"
    );
}

#[test]
fn work_and_depth_are_bounded() {
    let costly = [
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% for m in messages %}{% for n in messages %}{{ m.content ~ n.content }}{% endfor %}{% endfor %}",
        "{{ 'x' * 999999999 }}",
    ];
    let messages: Vec<Json> =
        (0..2_000).map(|_| json!({"role": "user", "content": "word ".repeat(10)})).collect();
    for template in costly {
        let error = render(template, json!(messages)).unwrap_err();
        assert_eq!(error, TextError::TemplateTooCostly { limit: FUEL }, "{template}");
    }
    let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    let error = render(deep, json!([])).unwrap_err();
    assert!(matches!(error, TextError::TemplateFailed { .. }), "{error}");
}

#[test]
fn tools_choose_the_template_that_is_made_for_them() {
    let templates = compile("plain {{ tools }}").unwrap();
    let (none, tool) = (Map::new(), [json!({"name": "f", "a": 1})]);
    let mut input = ChatTemplateInput {
        messages: &[],
        tools: None,
        documents: None,
        add_generation_prompt: true,
        continue_final_message: false,
        kwargs: &none,
    };
    assert_eq!(templates.render(&input).unwrap(), "plain None");
    input.tools = Some(&[]);
    assert_eq!(templates.render(&input).unwrap(), "plain None");
    input.tools = Some(&tool);
    assert_eq!(templates.render(&input).unwrap(), r#"tools: [{"name": "f", "a": 1}]"#);
}

#[test]
fn kwargs_reach_the_template_but_cannot_replace_the_request() {
    let templates = compile("{{ enable_thinking }}{{ bos_token }}").unwrap();
    let kwargs = json!({"enable_thinking": false, "bos_token": "<b>"});
    let mut input = ChatTemplateInput {
        messages: &[],
        tools: None,
        documents: None,
        add_generation_prompt: false,
        continue_final_message: false,
        kwargs: kwargs.as_object().unwrap(),
    };
    assert_eq!(templates.render(&input).unwrap(), "False<b>");
    let bad = json!({"messages": []});
    input.kwargs = bad.as_object().unwrap();
    let error = templates.render(&input).unwrap_err().to_string();
    assert!(error.starts_with("chat_template_kwargs.messages: "), "{error}");
}

#[test]
fn the_last_message_can_be_left_open_to_be_continued() {
    let keeps =
        "{% for m in messages %}[{{ m.content }}]{% endfor %}{{ '>' if add_generation_prompt }}";
    let trims = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}";
    let loses = "{% for m in messages %}[{{ m.role }}]{% endfor %}";
    let continued = |template: &str, last: Json| {
        let none = Map::new();
        compile(template).unwrap().render(&ChatTemplateInput {
            messages: &[json!({"role": "user", "content": "a b"}), last],
            tools: None,
            documents: None,
            add_generation_prompt: false,
            continue_final_message: true,
            kwargs: &none,
        })
    };
    let text = json!({"role": "assistant", "content": " a b "});
    assert_eq!(continued(keeps, text.clone()).unwrap(), "[a b][ a b ");
    assert_eq!(continued(trims, text.clone()).unwrap(), "[a b][a b");
    let part = json!({"role": "assistant", "content": [{"type": "text", "text": "b"}]});
    assert_eq!(continued(keeps, part).unwrap(), "[a b][b");
    for (template, last) in [(loses, text), (keeps, json!({"role": "assistant"}))] {
        let error = continued(template, last).unwrap_err();
        assert!(error.to_string().starts_with("continue_final_message: "), "{error}");
    }
}
