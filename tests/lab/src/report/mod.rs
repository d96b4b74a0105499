//! x
pub fn demo(_: bool) -> anyhow::Result<bool> { Ok(true) }
