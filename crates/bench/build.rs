//! Builds the program that cold starts are measured with.

use std::{env, error::Error, path::Path, process::Command};

const SOURCE: &str = "static-server/main.rs";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={SOURCE}");
    let program = Path::new(&env::var("OUT_DIR")?).join("static-server");
    let mut said = String::new();
    // Not each distribution that has a C linker has a C library to link statically: then the program
    // starts some 0.2 ms later.
    for linked in ["+crt-static", "-crt-static"] {
        let mut rustc = Command::new(env::var("RUSTC")?);
        rustc.args(["--edition", "2024", "-O", "-C", "panic=abort", "-C", "strip=symbols"]);
        rustc.arg("-C").arg(format!("target-feature={linked}"));
        if let Ok(linker) = env::var("RUSTC_LINKER") {
            rustc.arg("-C").arg(format!("linker={linker}"));
        }
        rustc.args(["--target", &env::var("TARGET")?, SOURCE, "-o"]).arg(&program);
        let output = rustc.output()?;
        if output.status.success() {
            return Ok(());
        }
        said += &String::from_utf8_lossy(&output.stderr);
    }
    Err(said.into())
}
