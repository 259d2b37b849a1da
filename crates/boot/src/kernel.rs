//! Where the kernel of a deployment comes from.
//!
//! A deployment's record names its kernel and initramfs by paths in its tree
//! ([`varve_format::release::Kernel`]). A boot loader that can be told which to start is
//! a [`BootLoader`]: it keeps one entry for each deployment, and its own files are
//! changed only through it. On a machine whose kernel is given from outside (a virtual
//! machine, a boot partition that another tool owns) it is [`Fixed`]: every deployment
//! runs on that one kernel, and what the records say is kept for later.

use varve_format::DeploymentName;
use varve_format::release::Kernel;

/// One thing that a boot loader can start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelEntry {
    /// The deployment that it belongs to.
    pub deployment: DeploymentName,
    /// Its kernel and initramfs, by paths in its tree.
    pub kernel: Kernel,
}

/// A boot loader's list of what it can start.
pub trait BootLoader {
    /// What its calls fail with.
    type Error: std::error::Error;

    /// The boot loader's name, for people.
    fn name(&self) -> &'static str;

    /// The entries that are there.
    fn entries(&self) -> Result<Vec<KernelEntry>, Self::Error>;

    /// Adds an entry, durably, before its deployment is promoted. Asked twice, it
    /// changes nothing.
    fn install(&mut self, entry: &KernelEntry) -> Result<(), Self::Error>;

    /// Takes an entry away, durably, before its deployment is collected. What is not
    /// there is no error.
    fn remove(&mut self, deployment: &DeploymentName) -> Result<(), Self::Error>;
}

/// The kernel is given from outside: there is no list, and nothing to change.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fixed;

impl BootLoader for Fixed {
    type Error = std::convert::Infallible;

    fn name(&self) -> &'static str {
        "fixed"
    }

    fn entries(&self) -> Result<Vec<KernelEntry>, Self::Error> {
        Ok(Vec::new())
    }

    fn install(&mut self, _: &KernelEntry) -> Result<(), Self::Error> {
        Ok(())
    }

    fn remove(&mut self, _: &DeploymentName) -> Result<(), Self::Error> {
        Ok(())
    }
}
