//! `cuelight check`: everything that is wrong with a configuration, at once.

use std::io::Write;

use super::{CheckArgs, USAGE};
use crate::config::{self, Profile};

/// Checks a configuration, or prints the reference of all keys. Returns the exit code: 0, or
/// [`USAGE`] with the list of problems on `err`.
pub fn check(args: &CheckArgs, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    // A reader that went away, as in `cuelight check | head`, is no fault of the configuration.
    if args.reference {
        let _ = out.write_all(config::reference().as_bytes());
        return 0;
    }
    let profile = if args.config.is_some() { Profile::Node } else { Profile::Serve };
    match config::load(args.config.as_deref(), &args.set, profile) {
        Ok(_) => {
            let what = args.config.as_deref().map(|file| file.display().to_string());
            let _ = writeln!(out, "{}: ok", what.as_deref().unwrap_or("configuration"));
            0
        }
        Err(errors) => {
            let _ = writeln!(err, "{errors}");
            USAGE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(config: Option<&str>, set: &[&str], reference: bool) -> (u8, String, String) {
        let set = set.iter().map(|set| (*set).to_owned()).collect();
        let args = CheckArgs { config: config.map(Into::into), set, reference };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = check(&args, &mut out, &mut err);
        (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn good_configurations_end_with_zero_and_bad_ones_with_64() {
        let ok = |out: &str| (0, out.to_owned(), String::new());
        assert_eq!(run(None, &[], false), ok("configuration: ok\n"));
        assert_eq!(run(Some("configs/sim.yaml"), &[], false), ok("configs/sim.yaml: ok\n"));
        let (code, out, err) = run(Some("configs/sim.yaml"), &["a=1", "b=2"], false);
        assert_eq!((code, out.as_str()), (USAGE, ""));
        assert!(err.starts_with("configs/sim.yaml: 2 problems\n  --set: a: unknown key"), "{err}");
    }

    #[test]
    fn the_reference_has_every_section() {
        let (code, out, err) = run(None, &[], true);
        assert_eq!((code, err.as_str()), (0, ""));
        for section in ["node", "log", "frontend", "worker", "supervision", "faults"] {
            assert!(out.contains(&format!("### `{section}`")), "{section}");
        }
    }
}
