//! Azure's names for one machine, and the generator behind ids that must merely look random.

use crate::api::Identity;
use crate::dice::Dice;

/// The eight digits in a pool's scale set name, the same for a pool at each start.
pub fn digits(identity: &Identity, pool: &str) -> String {
    let hash = stable_hash(&format!("{}/{}/{pool}", identity.node_resource_group, identity.subscription));
    format!("{:08}", 10_000_000 + hash % 90_000_000)
}

/// FNV-1a: stable over releases of Rust, which the standard hasher does not promise.
pub fn stable_hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What the machines of a pool are to Azure Compute, by the pool's `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FleetKind {
    /// Instances of one scale set.
    ScaleSet,
    /// Virtual machines of their own.
    VirtualMachines,
}

/// The machines of one pool, as Azure Compute names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    /// The scale set, or what the names of all machines begin with.
    pub name: String,
    /// Which of the two.
    pub kind: FleetKind,
}

impl Fleet {
    /// The machines of a pool.
    pub fn new(identity: &Identity, pool: &str, kind: FleetKind) -> Self {
        let suffix = match kind {
            FleetKind::ScaleSet => "vmss",
            FleetKind::VirtualMachines => "vms",
        };
        Self { name: format!("aks-{pool}-{}-{suffix}", digits(identity, pool)), kind }
    }

    /// The name that Azure and IMDS give a machine.
    pub fn vm(&self, instance: u64) -> String {
        match self.kind {
            FleetKind::ScaleSet => format!("{}_{instance}", self.name),
            FleetKind::VirtualMachines => format!("{}{instance}", self.name),
        }
    }

    /// The node name: of a scale set, its name and the instance id as six digits of base 36.
    pub fn node(&self, instance: u64) -> String {
        match self.kind {
            FleetKind::ScaleSet => format!("{}{}", self.name, base_36(instance)),
            FleetKind::VirtualMachines => self.vm(instance),
        }
    }

    /// The ARM id of a machine, with the resource group as Azure spells it.
    pub fn resource(&self, identity: &Identity, instance: u64) -> String {
        self.below(identity, &identity.node_resource_group, instance)
    }

    /// `spec.providerID`, with the resource group in lower case as the cloud provider writes it.
    pub fn provider_id(&self, identity: &Identity, instance: u64) -> String {
        format!("azure://{}", self.below(identity, &identity.node_resource_group.to_lowercase(), instance))
    }

    fn below(&self, identity: &Identity, group: &str, instance: u64) -> String {
        let compute = format!(
            "/subscriptions/{}/resourceGroups/{group}/providers/Microsoft.Compute",
            identity.subscription
        );
        match self.kind {
            FleetKind::ScaleSet => {
                format!("{compute}/virtualMachineScaleSets/{}/virtualMachines/{instance}", self.name)
            }
            FleetKind::VirtualMachines => format!("{compute}/virtualMachines/{}", self.vm(instance)),
        }
    }
}

fn base_36(number: u64) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut rest = number;
    let mut reversed = String::new();
    for _ in 0..6 {
        reversed.push(char::from(DIGITS[(rest % 36) as usize]));
        rest /= 36;
    }
    reversed.chars().rev().collect()
}

/// Names that nobody chose: repeatable for a seed, which a test may want.
#[derive(Debug, Clone)]
pub struct Ids(Dice);

impl Ids {
    /// A generator that repeats itself for the same seed.
    pub fn seeded(seed: u64) -> Self {
        Self(Dice::new(seed))
    }

    /// A GUID in small letters.
    pub fn guid(&mut self) -> String {
        let (high, low) = (self.0.roll(), self.0.roll());
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xfff,
            0x8000 | ((low >> 48) & 0x3fff),
            low & 0xffff_ffff_ffff
        )
    }

    /// That many characters of base-64url, as in signatures.
    pub fn opaque(&mut self, length: usize) -> String {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        (0..length).map(|_| char::from(ALPHABET[self.0.below(64) as usize])).collect()
    }
}

/// A GUID with the bytes of its first three groups reversed: how a status document may name an
/// operation whose URL has the GUID the other way round.
pub fn byte_swapped(guid: &str) -> String {
    let swap = |group: &str| -> String {
        group.as_bytes().chunks(2).rev().map(|pair| String::from_utf8_lossy(pair).into_owned()).collect()
    };
    guid.split('-')
        .enumerate()
        .map(|(place, group)| if place < 3 { swap(group) } else { group.to_owned() })
        .collect::<Vec<_>>()
        .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_machine() {
        let set = Fleet { name: "aks-spota-12345678-vmss".into(), kind: FleetKind::ScaleSet };
        assert_eq!(set.node(13), "aks-spota-12345678-vmss00000d");
        assert_eq!(set.node(36 * 36 + 35), "aks-spota-12345678-vmss00010z");
        assert_eq!(set.vm(2768), "aks-spota-12345678-vmss_2768");
        let single = Fleet { name: "aks-spota-12345678-vms".into(), kind: FleetKind::VirtualMachines };
        assert_eq!((single.vm(0), single.node(0)), ("aks-spota-12345678-vms0".into(), single.vm(0)));
        let id = single.provider_id(&Identity::default(), 0);
        assert!(id.starts_with("azure:///subscriptions/"), "{id}");
        assert!(id.ends_with("/providers/Microsoft.Compute/virtualMachines/aks-spota-12345678-vms0"), "{id}");
        assert_eq!(digits(&Identity::default(), "spota").len(), 8);
        assert_ne!(digits(&Identity::default(), "spota"), digits(&Identity::default(), "spotb"));
    }

    #[test]
    fn guids_look_like_guids() {
        let guid = Ids::seeded(7).guid();
        let lengths: Vec<usize> = guid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_ne!(byte_swapped(&guid), guid);
        assert_eq!(byte_swapped(&byte_swapped(&guid)), guid);
    }
}
