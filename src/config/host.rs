//! What a configuration takes from its surroundings; tests bring their own.

use std::path::PathBuf;

/// The machine and the process, as far as defaults depend on them.
pub(super) struct Host {
    /// Reads a variable of the environment.
    pub(super) env: fn(&str) -> Option<String>,
    /// Processors that this process may use.
    pub(super) cores: usize,
    /// The host's name.
    pub(super) name: String,
    /// Where the shipped model may be, best first.
    pub(super) models: Vec<PathBuf>,
}

impl Host {
    /// This process on this machine.
    pub(super) fn this() -> Self {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = Some(name.trim().to_owned()).filter(|name| !name.is_empty());
        Self {
            env: |name| std::env::var(name).ok(),
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            name: name.unwrap_or_else(|| "localhost".into()),
            models: models(std::env::current_exe().ok()),
        }
    }
}

/// In the working directory, in the checkout that the program was built in, next to the program.
fn models(program: Option<PathBuf>) -> Vec<PathBuf> {
    const SHIPPED: &str = "models/cuelight-tiny";
    let mut places = vec![PathBuf::from(SHIPPED)];
    if let Some(folder) = program.as_deref().and_then(|program| program.parent()) {
        // The program is at target/release/cuelight.
        places.extend(folder.ancestors().nth(2).map(|checkout| checkout.join(SHIPPED)));
        places.push(folder.join(SHIPPED));
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_model_is_looked_for_where_the_program_may_have_come_from() {
        let places = models(Some("/c/target/release/cuelight".into()));
        let expected = [
            "models/cuelight-tiny",
            "/c/models/cuelight-tiny",
            "/c/target/release/models/cuelight-tiny",
        ];
        assert_eq!(places, expected.map(PathBuf::from));
        assert_eq!(models(Some("/cuelight".into())).len(), 2);
        assert_eq!(models(None).len(), 1);
    }
}
