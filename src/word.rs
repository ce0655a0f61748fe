//! A text that is mostly known at compile time and sometimes comes from another node.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use bincode::de::Decoder;
use bincode::error::DecodeError;
use bincode::{Decode, Encode};

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode)]
pub struct Word(Cow<'static, str>);

impl<C> Decode<C> for Word {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(Self(String::decode(decoder)?.into()))
    }
}

bincode::impl_borrow_decode!(Word);

impl From<&'static str> for Word {
    fn from(text: &'static str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Word {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Deref for Word {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<&str> for Word {
    fn eq(&self, other: &&str) -> bool {
        &self.0 == other
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl serde::Serialize for Word {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}
