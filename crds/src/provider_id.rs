//! A node's identity in Azure, as its `spec.providerID` tells it.

use std::fmt;
use std::str::FromStr;

/// A VM of a uniform scale set, read from a `providerID` such as
/// `azure:///subscriptions/…/virtualMachineScaleSets/aks-spot-12345678-vmss/virtualMachines/13`.
///
/// Azure's metadata service names the same VM `aks-spot-12345678-vmss_13` (decimal) while the Node is
/// `aks-spot-12345678-vmss00000d` (base 36): always map by providerID, never by text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProviderId {
    /// Name of the scale set.
    pub scale_set: String,
    /// Instance id in it.
    pub instance: u64,
}

/// Why a `providerID` is no VM of a scale set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "providerID `{0}` names no VM of a scale set (want azure:///…/virtualMachineScaleSets/NAME/virtualMachines/N)"
)]
pub struct ParseError(String);

impl FromStr for ProviderId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseError(text.chars().take(300).collect());
        let path = text.strip_prefix("azure://").ok_or_else(wrong)?;
        let mut parts = path.rsplit('/');
        let (Some(instance), Some(vms), Some(scale_set), Some(sets)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        // Azure's resource paths are case-insensitive, and different components spell them differently.
        if !vms.eq_ignore_ascii_case("virtualMachines")
            || !sets.eq_ignore_ascii_case("virtualMachineScaleSets")
            || scale_set.is_empty()
        {
            return Err(wrong());
        }
        Ok(Self { scale_set: scale_set.to_owned(), instance: instance.parse().map_err(|_| wrong())? })
    }
}

impl ProviderId {
    /// The VM's name in the metadata service: `<scale set>_<decimal instance id>`.
    pub fn imds_name(&self) -> String {
        format!("{}_{}", self.scale_set, self.instance)
    }

    /// The instance id if `resource`, a name from a Scheduled Events document, is a VM of this scale set.
    pub fn sibling(&self, resource: &str) -> Option<u64> {
        let (scale_set, instance) = resource.rsplit_once('_')?;
        (scale_set.eq_ignore_ascii_case(&self.scale_set)).then(|| instance.parse().ok()).flatten()
    }
}

impl fmt::Display for ProviderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.scale_set, self.instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "azure:///subscriptions/s/resourceGroups/mc_g/providers/Microsoft.Compute/";

    #[test]
    fn reads_scale_set_vms() {
        let id: ProviderId =
            format!("{PREFIX}virtualMachineScaleSets/aks-spot-12345678-vmss/virtualMachines/13")
                .parse()
                .unwrap();
        assert_eq!((id.scale_set.as_str(), id.instance), ("aks-spot-12345678-vmss", 13));
        assert_eq!(id.imds_name(), "aks-spot-12345678-vmss_13");
        assert_eq!(id.sibling("AKS-spot-12345678-VMSS_40"), Some(40));
        assert_eq!(id.sibling("aks-other-12345678-vmss_40"), None);
        assert_eq!(id.sibling("aks-spot-12345678-vmss"), None);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for text in [
            "",
            "azure:///",
            "aws:///eu/i-1",
            &format!("{PREFIX}virtualMachines/aks-mypool-12345678-vms0"),
            &format!("{PREFIX}virtualMachineScaleSets/x/virtualMachines/zz"),
            &format!("{PREFIX}virtualMachineScaleSets//virtualMachines/1"),
        ] {
            assert!(text.parse::<ProviderId>().is_err(), "{text}");
        }
    }
}
