//! The C interface of `cpp/standin/include/standin.h`.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use super::{SourceRow, TokenSource, UnknownOption};

/// `cuelight_standin_row`.
#[repr(C)]
struct Row {
    sequence: u64,
    tokens: *const i32,
    tokens_len: usize,
    prompt_len: usize,
    known_len: usize,
    logits: *mut f32,
    vocab: usize,
    token: i32,
    logprob: f32,
}

type Forward = unsafe extern "C" fn(*mut c_void, *const c_char, *mut Row, usize) -> c_int;
type Forget = unsafe extern "C" fn(*mut c_void, *const c_char, u64);

unsafe extern "C" {
    fn cuelight_standin_source(forward: Option<Forward>, forget: Option<Forget>, user: *mut c_void);
    fn cuelight_standin_set(key: *const c_char, value: *const c_char) -> c_int;
    fn cuelight_standin_reset();
    fn cuelight_standin_options() -> *const c_char;
}

type Source = Box<dyn TokenSource>;

/// Engines that are opened from now on have their tokens from `source`, which is never dropped: engines that
/// hang may outlive everything.
pub fn tokens_from(source: Source) {
    let user: *mut Source = Box::into_raw(Box::new(source));
    // SAFETY: `user` is never freed, and both functions expect exactly such a pointer.
    unsafe { cuelight_standin_source(Some(forward), Some(forget), user.cast()) }
}

/// Engines that are opened from now on follow the built-in rule: a hash of all tokens is the next one.
pub fn tokens_by_rule() {
    // SAFETY: no function, no pointer.
    unsafe { cuelight_standin_source(None, None, ptr::null_mut()) }
}

/// Sets an option for this process, also for engines that run.
///
/// # Errors
/// [`UnknownOption`]; nothing has changed.
pub fn set(key: &str, value: &str) -> Result<(), UnknownOption> {
    if let (Ok(k), Ok(v)) = (CString::new(key), CString::new(value)) {
        // SAFETY: both are strings of C that live during the call.
        if unsafe { cuelight_standin_set(k.as_ptr(), v.as_ptr()) } == 0 {
            return Ok(());
        }
    }
    Err(UnknownOption { key: key.to_owned(), value: value.to_owned(), known: options() })
}

/// Forgets what was set, and lets engines go on that hang.
pub fn reset() {
    // SAFETY: may be called at any time.
    unsafe { cuelight_standin_reset() }
}

/// The names of all options, separated by commas.
pub fn options() -> String {
    // SAFETY: a constant string.
    unsafe { CStr::from_ptr(cuelight_standin_options()) }.to_string_lossy().into_owned()
}

/// # Safety
/// `user` comes from [`tokens_from`]; `model` is a string and `rows` an array of `len` rows as standin.h has it.
unsafe extern "C" fn forward(
    user: *mut c_void,
    model: *const c_char,
    rows: *mut Row,
    len: usize,
) -> c_int {
    // SAFETY: see above; the source is never freed and only shared references to it are made.
    let source = unsafe { &*user.cast::<Source>() };
    // SAFETY: see above.
    let (model, rows) = unsafe {
        (CStr::from_ptr(model).to_string_lossy(), std::slice::from_raw_parts_mut(rows, len))
    };
    let mut views: Vec<SourceRow<'_>> = rows.iter().map(view).collect();
    // A panic must not unwind into C++.
    let fine = catch_unwind(AssertUnwindSafe(|| source.forward(&model, &mut views)));
    let results: Vec<(i32, f32)> = views.iter().map(|view| (view.token, view.logprob)).collect();
    drop(views);
    for (row, (token, logprob)) in rows.iter_mut().zip(results) {
        (row.token, row.logprob) = (token, logprob);
    }
    c_int::from(!matches!(fine, Ok(true)))
}

fn view(row: &Row) -> SourceRow<'_> {
    // SAFETY: the tokens are valid during the call, and nobody changes them.
    let tokens = unsafe { std::slice::from_raw_parts(row.tokens, row.tokens_len) };
    // SAFETY: null, or `vocab` numbers that belong to this row alone during the call.
    let logits = (!row.logits.is_null())
        .then(|| unsafe { std::slice::from_raw_parts_mut(row.logits, row.vocab) });
    SourceRow {
        sequence: row.sequence,
        tokens,
        prompt_len: row.prompt_len,
        known_len: row.known_len,
        logits,
        token: -1,
        logprob: 0.0,
    }
}

/// # Safety
/// As [`forward`].
unsafe extern "C" fn forget(user: *mut c_void, model: *const c_char, sequence: u64) {
    // SAFETY: see `forward`.
    let source = unsafe { &*user.cast::<Source>() };
    // SAFETY: see `forward`.
    let model = unsafe { CStr::from_ptr(model) }.to_string_lossy();
    // A panic must not unwind into C++; what is not forgotten costs memory only.
    let _ = catch_unwind(AssertUnwindSafe(|| source.forget(&model, sequence)));
}
