//! Bodies that hold what Azure's other official examples of agent pools hold (2025-10-01, and the monthly
//! versions after it), one for each, in our own words and values.

use serde_json::{Value, json};

use crate::scripted::pool;

/// Named after the example whose properties they have.
pub fn shapes() -> Vec<(&'static str, Value)> {
    let group = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute";
    let sysctls = json!({
        "sysctls": {"netCoreWmemDefault": 13000, "netIpv4TcpTwReuse": false, "netIpv4IpLocalPortRange": "30000 60000", "kernelThreadsMax": 90000},
        "transparentHugePageEnabled": "never", "transparentHugePageDefrag": "defer", "swapFileSizeMB": 1024
    });
    let kubelet = json!({
        "cpuManagerPolicy": "static", "cpuCfsQuota": false, "cpuCfsQuotaPeriod": "100ms", "imageGcHighThreshold": 85,
        "imageGcLowThreshold": 60, "topologyManagerPolicy": "single-numa-node", "allowedUnsafeSysctls": ["net.core.*"],
        "failSwapOn": true, "containerLogMaxSizeMB": 50, "containerLogMaxFiles": 5, "podMaxPids": 200
    });
    let dns = |destination: &str| {
        json!({
            "queryLogging": "Error", "protocol": "ForceTCP", "forwardDestination": destination,
            "forwardPolicy": "Random", "maxConcurrent": 100, "cacheDurationInSeconds": 60,
            "serveStaleDurationInSeconds": 60, "serveStale": "Disable"
        })
    };
    vec![
        (
            "CRG",
            pool(
                "crg",
                json!({"capacityReservationGroupID": format!("{group}/capacityReservationGroups/r")}),
            ),
        ),
        ("CustomNodeConfig", pool("custom", json!({"kubeletConfig": kubelet, "linuxOSConfig": sysctls}))),
        ("DedicatedHostGroup", pool("hosts", json!({"hostGroupID": format!("{group}/hostGroups/h")}))),
        ("EnableEncryptionAtHost", pool("crypt", json!({"enableEncryptionAtHost": true}))),
        ("EnableFIPS", pool("fips", json!({"enableFIPS": true}))),
        ("EnableUltraSSD", pool("ultra", json!({"enableUltraSSD": true}))),
        (
            "Ephemeral",
            pool(
                "ephemeral",
                json!({"osDiskType": "Ephemeral", "osDiskSizeGB": 64, "kubeletDiskType": "OS"}),
            ),
        ),
        ("GPUMIG", pool("mig", json!({"gpuInstanceProfile": "MIG3g", "gpuProfile": {"driver": "Install"}}))),
        (
            "KataVmIsolation",
            pool("kata", json!({"osSKU": "AzureLinux", "workloadRuntime": "KataVmIsolation"})),
        ),
        ("WasmWasi", pool("wasm", json!({"workloadRuntime": "WasmWasi", "mode": "User"}))),
        (
            "LocalDNS",
            pool(
                "dns",
                json!({"localDNSProfile": {
                    "mode": "Preferred", "state": "Enabled",
                    "vnetDNSOverrides": {".": dns("VnetDNS")}, "kubeDNSOverrides": {"cluster.local": dns("ClusterCoreDNS")}
                }}),
            ),
        ),
        ("MessageOfTheDay", pool("motd", json!({"messageOfTheDay": "aGVsbG8="}))),
        (
            "OSSKU",
            pool("ossku", json!({"osSKU": "AzureLinux3", "kubeletConfig": null, "linuxOSConfig": sysctls})),
        ),
        (
            "PPG",
            pool("ppg", json!({"proximityPlacementGroupID": format!("{group}/proximityPlacementGroups/p")})),
        ),
        (
            "Snapshot",
            pool(
                "snap",
                json!({"creationData": {"sourceResourceId": "/subscriptions/s/snapshots/x"}, "enableFIPS": true}),
            ),
        ),
        ("TypeVirtualMachines", {
            let mut body = pool(
                "vms",
                json!({
                    "type": "VirtualMachines",
                    "virtualMachinesProfile": {"scale": {"manual": [{"size": "Standard_D2s_v5", "count": 2}, {"size": "Standard_D4s_v5", "count": 1}]}},
                    "virtualMachineNodesStatus": [{"size": "Standard_D2s_v5", "count": 2}, {"size": "Standard_D4s_v5", "count": 1}]
                }),
            );
            body["properties"].as_object_mut().unwrap().remove("count");
            body["properties"].as_object_mut().unwrap().remove("vmSize");
            body
        }),
        (
            "WindowsDisableOutboundNAT",
            pool(
                "win1",
                json!({"osType": "Windows", "osSKU": "Windows2022", "windowsProfile": {"disableOutboundNat": true}}),
            ),
        ),
        ("WindowsOSSKU", pool("win2", json!({"osType": "Windows", "osSKU": "Windows2025"}))),
        (
            "Update, autoscaled spot",
            pool(
                "auto",
                json!({
                    "enableAutoScaling": true, "minCount": 2, "maxCount": 5, "scaleSetPriority": "Spot", "scaleSetEvictionPolicy": "Delete", "nodeTaints": ["a=b:NoSchedule"]
                }),
            ),
        ),
        ("Start", {
            let mut body = pool("start", json!({}));
            body["properties"] = json!({"provisioningState": "Starting", "count": 8, "enableAutoScaling": true, "minCount": 1, "maxCount": 9, "powerState": {"code": "Running"}});
            body
        }),
        ("Stop", {
            let mut body = pool("stop", json!({}));
            body["properties"] = json!({"provisioningState": "Stopping", "count": 0, "enableAutoScaling": false, "minCount": null, "maxCount": null, "powerState": {"code": "Stopped"}});
            body
        }),
        (
            "network, security, gateway and upgrade profiles",
            pool(
                "rich",
                json!({
                    "vnetSubnetID": "/subscriptions/s/subnets/n", "podSubnetID": "/subscriptions/s/subnets/p", "podIPAllocationMode": "StaticBlock",
                    "networkProfile": {"nodePublicIPTags": [{"ipTagType": "RoutingPreference", "tag": "Internet"}], "allowedHostPorts": [{"portStart": 80, "portEnd": 81, "protocol": "TCP"}], "applicationSecurityGroups": []},
                    "securityProfile": {"enableVTPM": true, "enableSecureBoot": false, "sshAccess": "LocalUser"},
                    "gatewayProfile": {"publicIPPrefixSize": 31}, "artifactStreamingProfile": {"enabled": true},
                    "upgradeSettings": {"maxSurge": "33%", "maxUnavailable": "0", "drainTimeoutInMinutes": 10, "nodeSoakDurationInMinutes": 0, "undrainableNodeBehavior": "Cordon"},
                    "scaleDownMode": "Deallocate", "enableNodePublicIP": true, "nodePublicIPPrefixID": "/x", "osDiskSizeGB": 0,
                    "spotMaxPrice": 88.88888, "scaleSetPriority": "Spot", "tags": {}, "nodeLabels": {"a.b/c": ""}, "availabilityZones": ["1", "3"],
                    "status": {"provisioningError": null}, "nodeImageVersion": "AKSUbuntu-2204gen2containerd-202509.23.0", "currentOrchestratorVersion": "1.33.1"
                }),
            ),
        ),
    ]
}
