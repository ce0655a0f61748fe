//! What can go wrong between text and tokens, by what the caller can do about it.

use std::path::PathBuf;

/// A failure of a tokenizer or a chat template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file of the model directory cannot be read.
    #[error("cannot read {}: {detail}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// A file of the model directory says something that is not understood.
    #[error("{}: {field}: {detail}; supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field in it.
        field: String,
        /// What is wrong with it.
        detail: String,
        /// What would be understood.
        supported: &'static str,
    },
    /// Chat was asked of a model that has no template for it.
    #[error(
        "the model has no chat template: neither chat_template.jinja nor chat_template in tokenizer_config.json; use /v1/completions"
    )]
    NoChatTemplate,
    /// The template refused the conversation with `raise_exception`.
    #[error("the model's chat template refuses this conversation: {message}")]
    Refused {
        /// The template's own words.
        message: String,
    },
    /// The template failed on this conversation.
    #[error("the model's chat template fails on this conversation: {detail}")]
    TemplateFailed {
        /// What failed and where in the template.
        detail: String,
    },
    /// Rendering was stopped because it did too much work.
    #[error(
        "rendering the chat template takes more than {limit} steps; send fewer or shorter messages, or raise the template's fuel limit"
    )]
    TemplateTooCostly {
        /// The limit, [`TextLimits::template_fuel`](super::TextLimits::template_fuel).
        limit: u64,
    },
    /// A message is not what a chat template takes.
    #[error("{place}: {detail}")]
    BadMessage {
        /// Where, e.g. `messages[2].content[0]`.
        place: String,
        /// What is wrong and what is taken.
        detail: String,
    },
    /// The tokenizer failed on this text or these ids.
    #[error("the tokenizer fails on this input: {detail}")]
    TokenizerFailed {
        /// The tokenizer's own words.
        detail: String,
    },
    /// A token id that the tokenizer does not know.
    #[error("token id {token} is outside the tokenizer's vocabulary of {vocab}")]
    UnknownToken {
        /// The id.
        token: u32,
        /// Ids start at 0 and end below this.
        vocab: usize,
    },
    /// The stop strings cannot be used.
    #[error("stop: {detail}")]
    BadStop {
        /// What is wrong and what is taken.
        detail: String,
    },
}

impl TextError {
    /// Whether the model directory is at fault, rather than what a client sent.
    ///
    /// No wildcard arm: a new variant must choose.
    pub fn is_model_fault(&self) -> bool {
        match self {
            Self::Unreadable { .. } | Self::Unsupported { .. } => true,
            Self::NoChatTemplate
            | Self::Refused { .. }
            | Self::TemplateFailed { .. }
            | Self::TemplateTooCostly { .. }
            | Self::BadMessage { .. }
            | Self::TokenizerFailed { .. }
            | Self::UnknownToken { .. }
            | Self::BadStop { .. } => false,
        }
    }
}
