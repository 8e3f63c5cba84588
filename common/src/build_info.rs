//! What this binary is.

/// The release, from the workspace manifest.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The target's operating system and architecture, such as `linux/x86_64`.
pub fn platform() -> String {
    format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH)
}
