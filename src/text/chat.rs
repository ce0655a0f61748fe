//! The chat template: messages into the prompt the model was trained on.

use std::error::Error as _;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::{Map, Value as Json};

use super::config::{TokenizerConfig, kind};
use super::messages::{self, ContentForm};
use super::{TextError, python};

/// Deepest recursion of macros and blocks in a template.
const MAX_RECURSION: usize = 150;

/// Names a template knows from the request itself; extra arguments cannot take them.
const RESERVED: [&str; 5] =
    ["messages", "tools", "documents", "add_generation_prompt", "continue_final_message"];

/// One conversation to render, in the shapes of OpenAI's chat completions.
#[derive(Clone, Copy, Debug)]
pub struct ChatTemplateInput<'a> {
    /// The messages: objects with a `role` and a `content` that is a string, null or an array of
    /// text parts. Other fields reach the template as they are; null fields count as absent.
    /// Arguments of tool calls that are strings of a JSON object reach it as that object.
    pub messages: &'a [Json],
    /// Tool definitions.
    pub tools: Option<&'a [Json]>,
    /// Documents for models that are made for retrieval.
    pub documents: Option<&'a [Json]>,
    /// Whether to end with the header of an assistant message.
    pub add_generation_prompt: bool,
    /// Whether to end within the last message, for the model to go on with it.
    pub continue_final_message: bool,
    /// More variables for the template (`chat_template_kwargs`), e.g. `enable_thinking`.
    pub kwargs: &'a Map<String, Json>,
}

/// A model's templates, compiled.
pub(super) struct ChatTemplates {
    env: Environment<'static>,
    default: Template,
    tool_use: Option<Template>,
    special_tokens: Map<String, Json>,
    fuel: u64,
    /// Most of it that one rendering took.
    most_fuel: AtomicU64,
}

struct Template {
    name: &'static str,
    content: ContentForm,
}

/// What `raise_exception` threw, found again as the source of the engine's error.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl ChatTemplates {
    /// `None` for a model without a template.
    pub(super) fn compile(config: &TokenizerConfig, fuel: u64) -> Result<Option<Self>, TextError> {
        let Some(default) = &config.templates.default else { return Ok(None) };
        let refuse = |name: &str, error: Error| TextError::Unsupported {
            path: config.templates.path.clone(),
            field: format!("chat_template {name}"),
            detail: describe(&error),
            supported: "Jinja templates in the syntax that transformers takes",
        };
        let mut env = environment(fuel).map_err(|error| refuse("syntax", error))?;
        let mut add = |name: &'static str, source: &str| {
            env.add_template_owned(name, without_generation_marks(source))
                .map_err(|error| refuse(name, error))?;
            Ok(Template { name, content: ContentForm::of(source) })
        };
        let default = add("default", default)?;
        let tool_use =
            config.templates.tool_use.as_deref().map(|text| add("tool_use", text)).transpose()?;
        let special_tokens = config.special_tokens.clone();
        let most_fuel = AtomicU64::new(0);
        Ok(Some(Self { env, default, tool_use, special_tokens, fuel, most_fuel }))
    }

    pub(super) fn render(&self, input: &ChatTemplateInput<'_>) -> Result<String, TextError> {
        check(input)?;
        let tools = input.tools.filter(|tools| !tools.is_empty());
        let template = match &self.tool_use {
            Some(tool_use) if tools.is_some() => tool_use,
            _ => &self.default,
        };
        let messages = messages::for_template(input.messages, template.content)?;
        let mut context: Vec<(&str, Value)> = Vec::new();
        for (key, value) in self.special_tokens.iter().chain(input.kwargs) {
            context.push((key, Value::from(Serde(value))));
        }
        context.push(("messages", messages));
        context.push(("tools", Value::from(Serde(tools))));
        context.push(("documents", Value::from(Serde(input.documents))));
        context.push(("add_generation_prompt", input.add_generation_prompt.into()));
        context.push(("continue_final_message", input.continue_final_message.into()));
        let rendered = self
            .env
            .get_template(template.name)
            .and_then(|template| template.render_captured(Value::from_pairs(context)))
            .map_err(|error| self.failure(&error))?;
        if let Some((used, _)) = rendered.state().fuel_levels() {
            self.most_fuel.fetch_max(used, Ordering::Relaxed);
        }
        let prompt = rendered.into_output();
        if input.continue_final_message { without_end(prompt, input.messages) } else { Ok(prompt) }
    }

    /// Most fuel that one rendering took.
    pub(super) fn most_fuel(&self) -> u64 {
        self.most_fuel.load(Ordering::Relaxed)
    }

    fn failure(&self, error: &Error) -> TextError {
        let mut source = error.source();
        while let Some(cause) = source {
            if let Some(Raised(message)) = cause.downcast_ref() {
                return TextError::Refused { message: message.clone() };
            }
            source = cause.source();
        }
        if error.kind() == ErrorKind::OutOfFuel {
            self.most_fuel.fetch_max(self.fuel, Ordering::Relaxed);
            return TextError::TemplateTooCostly { limit: self.fuel };
        }
        TextError::TemplateFailed { detail: describe(error) }
    }
}

/// The engine, set up as transformers sets up Jinja.
fn environment(fuel: u64) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_debug(false);
    env.set_fuel(Some(fuel));
    env.set_recursion_limit(MAX_RECURSION);
    env.set_unknown_method_callback(unknown_method_callback);
    env.add_filter("tojson", python::tojson);
    env.add_test("iterable", python::is_iterable);
    env.add_test("sequence", python::is_sequence);
    env.add_function("strftime_now", |format: &str| python::strftime_now(format));
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
    });
    Ok(env)
}

/// An engine's error with its cause, for people.
fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn check(input: &ChatTemplateInput<'_>) -> Result<(), TextError> {
    if let Some(name) = RESERVED.iter().find(|name| input.kwargs.contains_key(**name)) {
        return Err(TextError::BadMessage {
            place: format!("chat_template_kwargs.{name}"),
            detail: "is a field of the request itself; send it there".to_owned(),
        });
    }
    if input.continue_final_message && input.add_generation_prompt {
        return Err(TextError::BadMessage {
            place: "continue_final_message".to_owned(),
            detail: "cannot be combined with add_generation_prompt; set one of them to false"
                .to_owned(),
        });
    }
    Ok(())
}

/// Takes away the marks `{% generation %}` and `{% endgeneration %}`, which only training uses; an
/// `if` in their place keeps what they do to white space.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(close) = rest[open..].find("%}").map(|close| open + close) else { break };
        let tag = &rest[open + 2..close];
        let word = tag.trim_matches(['-', '+']).trim();
        out.push_str(&rest[..open + 2]);
        match word {
            "generation" => out.push_str(&tag.replace(word, " if true ")),
            "endgeneration" => out.push_str(&tag.replace(word, " endif ")),
            _ => out.push_str(tag),
        }
        rest = &rest[close..];
    }
    out + rest
}

/// Cuts what the template writes after the content of the last message.
fn without_end(mut prompt: String, messages: &[Json]) -> Result<String, TextError> {
    let refuse = |detail: &str| TextError::BadMessage {
        place: "continue_final_message".to_owned(),
        detail: detail.to_owned(),
    };
    let content = match messages.last().and_then(|message| message.get("content")) {
        Some(Json::String(text)) => text.as_str(),
        Some(Json::Array(parts)) => parts
            .iter()
            .rev()
            .find_map(|part| part.get("text")?.as_str())
            .ok_or_else(|| refuse("the last message has no text to go on with"))?,
        Some(other) => {
            return Err(refuse(&format!("the content of the last message is {}", kind(other))));
        }
        None => return Err(refuse("the last message has no content to go on with")),
    };
    let trimmed = content.trim();
    let start = prompt.rfind(trimmed).ok_or_else(|| {
        refuse("the chat template does not write the last message as it is, so it cannot go on")
    })?;
    // Templates that trim contents do not write the spaces at its end.
    let whole = content.trim_start();
    let kept = if prompt[start..].starts_with(whole) { whole } else { trimmed };
    prompt.truncate(start + kept.len());
    Ok(prompt)
}

#[cfg(test)]
mod tests;
