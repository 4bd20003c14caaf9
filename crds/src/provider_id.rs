//! A node's identity in Azure, as its `spec.providerID` tells it.

use std::fmt;
use std::str::FromStr;

/// A VM, read from a `providerID`.
///
/// Azure's metadata service names a scale set's VM `aks-spot-12345678-vmss_13` (decimal) while the Node is
/// `aks-spot-12345678-vmss00000d` (base 36): always map by providerID, never by text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProviderId {
    /// A VM of a uniform scale set:
    /// `azure:///subscriptions/…/virtualMachineScaleSets/aks-spot-12345678-vmss/virtualMachines/13`.
    ScaleSet {
        /// Name of the scale set.
        scale_set: String,
        /// Instance id in it.
        instance: u64,
    },
    /// A VM of its own, as agent pools of type `VirtualMachines` have:
    /// `azure:///subscriptions/…/Microsoft.Compute/virtualMachines/aks-mypool-12345678-vms0`.
    Vm {
        /// Its name, the same everywhere.
        name: String,
    },
}

/// Why a `providerID` is no VM of Azure's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "providerID `{0}` names no VM (want azure:///…/virtualMachineScaleSets/NAME/virtualMachines/N or \
     azure:///…/Microsoft.Compute/virtualMachines/NAME)"
)]
pub struct ParseError(String);

impl FromStr for ProviderId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseError(text.chars().take(300).collect());
        let path = text.strip_prefix("azure://").ok_or_else(wrong)?;
        let mut parts = path.rsplit('/');
        let (Some(vm), Some(vms), Some(parent), Some(kind)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        // Azure's resource paths are case-insensitive, and different components spell them differently.
        if !vms.eq_ignore_ascii_case("virtualMachines") || vm.is_empty() || parent.is_empty() {
            return Err(wrong());
        }
        if kind.eq_ignore_ascii_case("virtualMachineScaleSets") {
            let instance = vm.parse().map_err(|_| wrong())?;
            Ok(Self::ScaleSet { scale_set: parent.to_owned(), instance })
        } else if parent.eq_ignore_ascii_case("Microsoft.Compute") {
            Ok(Self::Vm { name: vm.to_owned() })
        } else {
            Err(wrong())
        }
    }
}

impl ProviderId {
    /// The VM's name in the metadata service: `<scale set>_<decimal instance id>`, or its name.
    pub fn imds_name(&self) -> String {
        self.to_string()
    }

    /// Name of its scale set in small letters and its instance id there, if it is in one.
    pub fn instance(&self) -> Option<(String, u64)> {
        match self {
            Self::ScaleSet { scale_set, instance } => Some((scale_set.to_ascii_lowercase(), *instance)),
            Self::Vm { .. } => None,
        }
    }

    /// The instance id if `resource`, a name from a Scheduled Events document, is a VM of this scale set.
    pub fn sibling(&self, resource: &str) -> Option<u64> {
        let Self::ScaleSet { scale_set: own, .. } = self else { return None };
        let (scale_set, instance) = resource.rsplit_once('_')?;
        scale_set.eq_ignore_ascii_case(own).then(|| instance.parse().ok()).flatten()
    }
}

impl fmt::Display for ProviderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ScaleSet { scale_set, instance } => write!(f, "{scale_set}_{instance}"),
            Self::Vm { name } => f.write_str(name),
        }
    }
}

/// The name that the Node of `resource`, a VM in a Scheduled Events document, should have. Whether that Node
/// really is this VM, its providerID says.
pub fn node_name(resource: &str) -> String {
    let of_scale_set = || {
        let (scale_set, instance) = resource.rsplit_once('_')?;
        Some(format!("{scale_set}{}", base_36(instance.parse().ok()?)))
    };
    of_scale_set().unwrap_or_else(|| resource.to_owned()).to_ascii_lowercase()
}

/// Six digits at least, as Azure names the computers of a scale set.
fn base_36(mut number: u64) -> String {
    let mut digits = Vec::new();
    while number > 0 || digits.len() < 6 {
        digits.push(char::from_digit((number % 36) as u32, 36).unwrap_or('0'));
        number /= 36;
    }
    digits.into_iter().rev().collect()
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
        assert_eq!(id.instance(), Some(("aks-spot-12345678-vmss".into(), 13)));
        assert_eq!(id.imds_name(), "aks-spot-12345678-vmss_13");
        assert_eq!(id.sibling("AKS-spot-12345678-VMSS_40"), Some(40));
        assert_eq!(id.sibling("aks-other-12345678-vmss_40"), None);
        assert_eq!(id.sibling("aks-spot-12345678-vmss"), None);
    }

    #[test]
    fn reads_vms_of_their_own() {
        let id: ProviderId = format!("{PREFIX}virtualMachines/aks-mypool-12345678-vms0").parse().unwrap();
        assert_eq!(id.imds_name(), "aks-mypool-12345678-vms0");
        assert_eq!(id.instance(), None);
        assert_eq!(id.sibling("aks-mypool-12345678-vms0"), None);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for text in [
            "",
            "azure:///",
            "aws:///eu/i-1",
            &format!("{PREFIX}virtualMachines/"),
            &format!("{PREFIX}disks/aks-mypool-12345678-vms0"),
            &format!("{PREFIX}virtualMachineScaleSets/x/virtualMachines/zz"),
            &format!("{PREFIX}virtualMachineScaleSets//virtualMachines/1"),
            &format!("{PREFIX}availabilitySets/x/virtualMachines/1"),
        ] {
            assert!(text.parse::<ProviderId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_vms_node_is_found_by_name() {
        for (vm, node) in [
            ("aks-spot-12345678-vmss_13", "aks-spot-12345678-vmss00000d"),
            ("AKS-SPOT-12345678-VMSS_0", "aks-spot-12345678-vmss000000"),
            ("aks-spot-12345678-vmss_46655", "aks-spot-12345678-vmss000zzz"),
            ("aks-mypool-12345678-vms0", "aks-mypool-12345678-vms0"),
            ("odd_name", "odd_name"),
            ("s_18446744073709551615", "s3w5e11264sgsf"),
        ] {
            assert_eq!(node_name(vm), node);
        }
    }
}
