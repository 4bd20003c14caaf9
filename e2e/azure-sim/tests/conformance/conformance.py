"""Drives a running simulator with Microsoft's own clients of Azure.

Nobody here wrote these clients: what they cannot read, the simulator says wrongly. They sign in at the token
endpoint over TLS, and work as they do anywhere; nothing is replaced but the addresses and the CA.

Takes one argument, the line of JSON that `spotpool-azure-sim serve` prints, and prints one line of JSON for each
check. The exit code is 0 if the script got to its end, whatever the checks found.
"""

import base64
import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
import urllib.request

from azure.core import MatchConditions
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.identity import ClientAssertionCredential, ManagedIdentityCredential, WorkloadIdentityCredential
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.computerecommender import RecommenderMgmtClient
from azure.mgmt.containerservice import ContainerServiceClient
from azure.mgmt.containerservice.models import AgentPool, AgentPoolDeleteMachinesParameter
from azure.mgmt.resourcegraph import ResourceGraphClient
from azure.mgmt.resourcegraph.models import QueryRequest, QueryRequestOptions

SIM = json.loads(sys.argv[1])
IDENTITY = SIM["identity"]
CLUSTER = (IDENTITY["resourceGroup"], IDENTITY["cluster"])
SCOPE = "https://management.azure.com/.default"
# A client that the tenant does not know.
STRANGER = "99999999-9999-9999-9999-999999999999"
# Seconds between polls: the simulated machines boot in less than one.
POLLING = 0.1

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def require(condition, *seen):
    """Like assert, but also under -O, and saying what was seen."""
    if not condition:
        raise AssertionError(" ".join(repr(one) for one in seen))


def control(method, path, body=None):
    """The simulator's control API, which is none of Azure's business."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{SIM['url']}/sim/{path}", data, {"content-type": "application/json"}, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
        return json.loads(response.read() or "null")


def switches(**changes):
    control("PATCH", "settings", {"switches": changes})


@contextlib.contextmanager
def slowly():
    """What begins meanwhile still runs when somebody looks, however busy this computer is."""
    before = control("GET", "state")["settings"]["deleteTimeMs"]
    control("PATCH", "settings", {"deleteTimeMs": 3_000, "switches": {"bootTimeMs": 3_000}})
    try:
        yield
    finally:
        control("PATCH", "settings", {"deleteTimeMs": before, "switches": {"bootTimeMs": None}})


def assertion(seconds_left=600):
    now = int(time.time())
    claims = {
        "iss": "https://oidc.example/", "sub": "system:serviceaccount:spotpool-system:spotpool-operator",
        "aud": ["api://AzureADTokenExchange"], "iat": now - 10, "nbf": now - 10, "exp": now + seconds_left,
    }
    part = lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
    return f"{part({'alg': 'RS256', 'typ': 'JWT'})}.{part(claims)}.c2lnbmVk"


def credential(seconds_left=600, client_id=None):
    return ClientAssertionCredential(
        SIM["tenantId"], client_id or SIM["clientIds"][0], lambda: assertion(seconds_left),
        authority=SIM["authorityHost"].rstrip("/"), disable_instance_discovery=True, connection_verify=SIM["caFile"],
    )


def client(kind, **options):
    # Resource Graph is of no subscription.
    subscription = [] if kind is ResourceGraphClient else [IDENTITY["subscription"]]
    return kind(
        options.pop("credential", SIGNED_IN), *subscription, base_url=SIM["tlsUrl"],
        credential_scopes=[SCOPE], connection_verify=SIM["caFile"], polling_interval=POLLING, **options,
    )


SIGNED_IN = credential()
AKS = client(ContainerServiceClient)
COMPUTE = client(ComputeManagementClient)
POOLS = AKS.agent_pools


def refused(status, code, kind, call):
    """Calls, and expects that very error: its status, its class in the client, its code in the body."""
    try:
        call()
    except HttpResponseError as error:
        body = json.loads(error.response.text())
        said = body.get("error", body)
        require(isinstance(error, kind), type(error), str(error))
        require(error.status_code == status and said["code"] == code, error.status_code, said)
        return said
    raise AssertionError(f"accepted, {code} expected")


def failed(code, poller):
    """Follows an operation to its end, which must be a failure of that code."""
    try:
        poller.result()
    except HttpResponseError as error:
        require(error.error is not None and error.error.code == code, str(error))
        return error
    raise AssertionError(f"succeeded, {code} expected; {poller.status()}")


def no_token(said, credential):
    """Asks for a token, and expects that very refusal."""
    try:
        credential.get_token(SCOPE)
    except ClientAuthenticationError as error:
        require(said in str(error), str(error))
        return
    raise AssertionError(f"a token was given, {said} expected")


def scale(pool, count, **options):
    body = POOLS.get(*CLUSTER, pool)
    body.count = count
    return POOLS.begin_create_or_update(*CLUSTER, pool, body, **options)


def scale_set(pool):
    return next(one["vmss"] for one in control("GET", "state")["pools"] if one["name"] == pool)


def nodes(pool):
    return [machine.name for machine in AKS.machines.list(*CLUSTER, pool)]


@check
def token_for_an_assertion_over_tls():
    token = SIGNED_IN.get_token(SCOPE)
    require(token.expires_on > time.time() + 60, token.expires_on)


@check
def workload_identity_with_a_token_file():
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(assertion())
        file.flush()
        workload = WorkloadIdentityCredential(
            tenant_id=SIM["tenantId"], client_id=SIM["clientIds"][0], token_file_path=file.name,
            authority=SIM["authorityHost"], disable_instance_discovery=True, connection_verify=SIM["caFile"])
        pools = client(ContainerServiceClient, credential=workload).agent_pools
        require(pools.get(*CLUSTER, "rega").name == "rega")


@check
def managed_identity_of_a_machine():
    machine = next(vm["node"] for vm in control("GET", "state")["vms"] if vm["pool"] == "rega")
    os.environ["AZURE_POD_IDENTITY_AUTHORITY_HOST"] = f"{SIM['url']}/imds/{machine}"
    pools = client(ContainerServiceClient, credential=ManagedIdentityCredential(client_id=SIM["clientIds"][0])).agent_pools
    require(pools.get(*CLUSTER, "rega").name == "rega")
    no_token("Identity not found", ManagedIdentityCredential(client_id=STRANGER))


@check
def token_refused_for_an_expired_assertion():
    no_token("AADSTS700024", credential(seconds_left=-60))


@check
def token_refused_for_an_unknown_client():
    no_token("AADSTS700016", credential(client_id=STRANGER))


@check
def list_of_pools():
    pools = {pool.name: pool for pool in POOLS.list(*CLUSTER)}
    require(sorted(pools) == ["rega", "spota", "spotb"], sorted(pools))
    require(pools["spota"].scale_set_priority == "Spot" and pools["rega"].scale_set_priority != "Spot", pools)


@check
def list_by_next_link_to_an_empty_last_page():
    whole = sorted(pool.name for pool in POOLS.list(*CLUSTER))
    switches(poolsPerPage=1, lastPageEmpty=True)
    pages = [[pool.name for pool in page] for page in POOLS.list(*CLUSTER).by_page()]
    switches(poolsPerPage=None, lastPageEmpty=False)
    require(len(pages) == len(whole) + 1 and pages[-1] == [], pages)
    require(sorted(name for page in pages for name in page) == whole, pages)


@check
def get_as_typed_model():
    pool = POOLS.get(*CLUSTER, "spota")
    require((pool.name, pool.count, pool.vm_size) == ("spota", 2, "Standard_D8s_v5"), pool)
    require(pool.provisioning_state == "Succeeded" and pool.scale_set_eviction_policy == "Delete", pool)
    require(pool.node_labels["kubernetes.azure.com/scalesetpriority"] == "spot", pool.node_labels)
    require(pool.node_taints == ["kubernetes.azure.com/scalesetpriority=spot:NoSchedule"], pool.node_taints)


@check
def e_tag_and_all_else_survive_the_model():
    raw = {}
    keep = lambda response: raw.update(json.loads(response.http_response.text()))
    pool = POOLS.get(*CLUSTER, "spota", raw_response_hook=keep)
    require(pool.e_tag and pool.e_tag == raw["properties"]["eTag"], pool.e_tag, raw)
    back = pool.as_dict()
    require(back["properties"]["eTag"] == pool.e_tag and back["id"] == raw["id"], back)
    lost = set(raw["properties"]) - set(back["properties"])
    require(not lost, lost)


@check
def pools_without_e_tags_are_scaled_all_the_same():
    switches(eTags="absent")
    require(POOLS.get(*CLUSTER, "rega").e_tag is None)
    require(scale("rega", 1).result().e_tag is None)
    switches(eTags="present")
    require(POOLS.get(*CLUSTER, "rega").e_tag)


@check
def get_of_no_pool():
    refused(404, "NotFound", ResourceNotFoundError, lambda: POOLS.get(*CLUSTER, "absent"))


@check
def create_spot_pool():
    pool = AgentPool({"properties": {
        "count": 1, "vmSize": "Standard_D4s_v5", "mode": "User", "osType": "Linux", "scaleSetPriority": "Spot",
        "scaleSetEvictionPolicy": "Delete", "spotMaxPrice": -1, "availabilityZones": ["1", "2"],
        "type": "VirtualMachineScaleSets",
    }})
    with slowly():
        poller = POOLS.begin_create_or_update(*CLUSTER, "spotnew", pool)
    require(not poller.done(), poller.status())
    made = poller.result()
    require(poller.status() == "Succeeded", poller.status())
    require(made.provisioning_state == "Succeeded" and made.count == 1, made)
    require(made.node_taints == ["kubernetes.azure.com/scalesetpriority=spot:NoSchedule"], made.node_taints)
    require(len(nodes("spotnew")) == 1)


@check
def scale_with_the_poller_to_the_end():
    before = POOLS.get(*CLUSTER, "spotnew")
    with slowly():
        poller = scale("spotnew", 3, etag=before.e_tag, match_condition=MatchConditions.IfNotModified)
    require(poller.status() == "InProgress", poller.status())
    require(POOLS.get(*CLUSTER, "spotnew").provisioning_state == "Scaling")
    after = poller.result()
    require(after.count == 3 and after.provisioning_state == "Succeeded" and after.e_tag != before.e_tag, after)
    require(len(nodes("spotnew")) == 3)


@check
def second_write_meanwhile_is_409():
    with slowly():
        poller = scale("spotnew", 4)
    said = refused(409, "OperationNotAllowed", HttpResponseError, lambda: scale("spotnew", 5))
    require("in progress" in said["message"], said)
    poller.result()


@check
def failing_scale():
    control("PUT", "capacity", {"vmSize": "Standard_D4s_v5", "priority": "Spot", "limit": 4})
    error = failed("SkuNotAvailable", scale("spotnew", 6))
    require("Standard_D4s_v5" in error.error.message, error.error.message)
    pool = POOLS.get(*CLUSTER, "spotnew")
    require(pool.provisioning_state == "Failed", pool.provisioning_state)
    require(pool.status.provisioning_error.code == "SkuNotAvailable", pool.status)
    control("PUT", "capacity", {"vmSize": "Standard_D4s_v5", "priority": "Spot", "limit": None})
    require(scale("spotnew", 4).result().provisioning_state == "Succeeded")


@check
def failing_scale_with_nested_quota_error():
    control("PUT", "quotas", {"name": "LowPriorityCores", "limit": 1})
    error = failed("QuotaExceeded", scale("spotnew", 6))
    require(error.error.details[0].code == "OperationNotAllowed", error.error.details)
    require("LowPriorityCores" in error.error.details[0].message, error.error.details)
    control("PUT", "quotas", {"name": "LowPriorityCores", "limit": None})
    require(scale("spotnew", 4).result().provisioning_state == "Succeeded")


@check
def stale_e_tag_is_412():
    stale = POOLS.get(*CLUSTER, "spotnew").e_tag
    scale("spotnew", 3).result()
    body = POOLS.get(*CLUSTER, "spotnew")
    refused(412, "PreconditionFailed", ResourceModifiedError, lambda: POOLS.begin_create_or_update(
        *CLUSTER, "spotnew", body, etag=stale, match_condition=MatchConditions.IfNotModified))


@check
def immutable_change_is_400():
    body = POOLS.get(*CLUSTER, "spotnew")
    body.vm_size = "Standard_D16s_v5"
    refused(400, "PropertyChangeNotAllowed", HttpResponseError,
            lambda: POOLS.begin_create_or_update(*CLUSTER, "spotnew", body))


@check
def retired_api_version_is_400():
    old = client(ContainerServiceClient, api_version="2023-03-02-preview").agent_pools
    refused(400, "NoRegisteredProviderFound", HttpResponseError, lambda: list(old.list(*CLUSTER)))


@check
def retry_after_of_a_429_is_obeyed():
    control("POST", "faults", {
        "target": {"surface": "arm", "method": "GET", "pathContains": "agentPools/spota"}, "times": 1,
        "action": {"kind": "error", "status": 429, "code": "Throttled", "message": "later", "envelope": "flat", "retryAfter": 2},
    })
    before = control("GET", "state")["armRequests"]["GET pool"]
    began = time.monotonic()
    require(POOLS.get(*CLUSTER, "spota").name == "spota")
    took = time.monotonic() - began
    asked = control("GET", "state")["armRequests"]["GET pool"] - before
    require(asked == 2 and took >= 2, asked, took)


@check
def pollers_wait_as_long_as_they_are_told():
    switches(retryAfter=2)
    began = time.monotonic()
    poller = scale("spotnew", 3)
    require(poller.result().provisioning_state == "Succeeded")
    switches(retryAfter=None)
    require(time.monotonic() - began >= 2, time.monotonic() - began)


@check
def throttled_by_the_bucket_of_puts():
    switches(throttling=True)
    once = client(ContainerServiceClient, retry_total=0).agent_pools
    body = POOLS.get(*CLUSTER, "spotb")
    accepted = 0
    try:
        for _ in range(30):
            once.begin_create_or_update(*CLUSTER, "spotb", body).result()
            accepted += 1
        raise AssertionError("30 writes in a row")
    except HttpResponseError as error:
        said = json.loads(error.response.text())
        require(error.status_code == 429 and said["code"] == "Throttled", error.status_code, said)
        require(int(error.response.headers["retry-after"]) > 0, error.response.headers)
    finally:
        switches(throttling=False)
    require(accepted >= 20, accepted)


@check
def machines_by_next_link():
    whole = list(AKS.machines.list(*CLUSTER, "spotnew"))
    switches(machinesPerPage=2)
    pages = [[machine.name for machine in page] for page in AKS.machines.list(*CLUSTER, "spotnew").by_page()]
    switches(machinesPerPage=100)
    require([len(page) for page in pages] == [2, 1], pages)
    require([name for page in pages for name in page] == [machine.name for machine in whole], pages)
    require(all("/virtualMachineScaleSets/" in machine.properties.resource_id for machine in whole), whole)
    one = AKS.machines.get(*CLUSTER, "spotnew", whole[0].name)
    require(one.name == whole[0].name and one.zones == whole[0].zones, one)


@check
def delete_machines():
    first, chosen, last = nodes("spotnew")
    unknown = AgentPoolDeleteMachinesParameter(machine_names=["aks-spotnew-00000000-vmss000zzz"])
    said = refused(400, "InvalidParameter", HttpResponseError,
                   lambda: POOLS.begin_delete_machines(*CLUSTER, "spotnew", unknown))
    require(chosen in said["message"], said)
    poller = POOLS.begin_delete_machines(*CLUSTER, "spotnew", AgentPoolDeleteMachinesParameter(machine_names=[chosen]))
    require(poller.result() is None and poller.status() == "Succeeded", poller.status())
    require(nodes("spotnew") == [first, last], nodes("spotnew"))
    require(POOLS.get(*CLUSTER, "spotnew").count == 2)


@check
def abort_latest_operation():
    switches(bootTimeMs=600_000)
    scaling = scale("spotnew", 3)
    aborting = POOLS.begin_abort_latest_operation(*CLUSTER, "spotnew")
    aborting.result()
    require(aborting.status() == "Succeeded", aborting.status())
    switches(bootTimeMs=None)
    try:
        scaling.result()
        raise AssertionError("the aborted operation succeeded")
    except HttpResponseError:
        require(scaling.status() == "Canceled", scaling.status())
    require(POOLS.get(*CLUSTER, "spotnew").provisioning_state == "Canceled")
    require(scale("spotnew", 2).result().provisioning_state == "Succeeded")


@check
def instance_views():
    group, name = IDENTITY["nodeResourceGroup"], scale_set("spota")
    machines = list(COMPUTE.virtual_machine_scale_set_vms.list(group, name, expand="instanceView"))
    require(len(machines) == 2, machines)
    for machine in machines:
        codes = [status.code for status in machine.instance_view.statuses]
        require("PowerState/running" in codes and "ProvisioningState/succeeded" in codes, codes)
    one = COMPUTE.virtual_machine_scale_set_vms.get_instance_view(group, name, machines[0].instance_id)
    require("PowerState/running" in [status.code for status in one.statuses], one)


@check
def simulate_eviction():
    group, name = IDENTITY["nodeResourceGroup"], scale_set("spota")
    switches(simulatedNoticeMs=200)
    vms = COMPUTE.virtual_machine_scale_set_vms
    doomed = sorted(machine.instance_id for machine in vms.list(group, name))[0]
    require(vms.simulate_eviction(group, name, doomed) is None)
    events = control("GET", "state")["events"]
    require([event["eventType"] for event in events] == ["Preempt"], events)
    give_up = time.monotonic() + 60
    while any(machine.instance_id == doomed for machine in vms.list(group, name)):
        require(time.monotonic() < give_up, "it is still there")
        time.sleep(POLLING)
    try:
        vms.get(group, name, doomed)
        raise AssertionError("an evicted machine is found")
    except ResourceNotFoundError:
        pass
    require(POOLS.get(*CLUSTER, "spota").count == 1)
    switches(simulatedNoticeMs=30_000)


@check
def eviction_rates_by_resource_graph():
    control("PUT", "eviction-rates", {"vmSize": "Standard_D8s_v5", "band": "15-20"})
    query = """SpotResources
        | where type =~ 'microsoft.compute/skuspotevictionrate/location'
        | where sku.name in~ ('standard_d8s_v5', 'standard_d8as_v5') and location in~ ('%s')
        | project skuName = tostring(sku.name), location, rate = tostring(properties.evictionRate)
        | order by skuName asc""" % IDENTITY["location"]
    graph = client(ResourceGraphClient)
    options = QueryRequestOptions(result_format="objectArray", top=1)
    rows, pages = [], 0
    while True:
        page = graph.resources(QueryRequest(query=query, options=options))
        require(page.total_records == 2 and page.count == 1 and page.result_truncated == "false", page)
        rows, pages = rows + page.data, pages + 1
        if page.skip_token is None:
            break
        options.skip_token = page.skip_token
    require(pages == 2, pages)
    require([row["skuName"] for row in rows] == ["standard_d8as_v5", "standard_d8s_v5"], rows)
    require([row["rate"] for row in rows] == ["0-5", "15-20"], rows)
    refused(400, "BadRequest", HttpResponseError, lambda: graph.resources(QueryRequest(query="SpotResources | nonsense")))


@check
def placement_scores():
    control("PUT", "placement-scores", {"vmSize": "Standard_D8s_v5", "zone": "2", "score": "Low", "quotaAvailable": False})
    scores = client(RecommenderMgmtClient, api_version="2025-06-05").spot_placement_scores
    question = {
        "desiredLocations": [IDENTITY["location"]], "desiredSizes": [{"sku": "Standard_D8s_v5"}], "desiredCount": 2,
        "availabilityZones": True,
    }
    found = scores.post(IDENTITY["location"], question).placement_scores
    seen = [(one.availability_zone, one.score, one.is_quota_available) for one in found]
    require(seen == [("1", "High", True), ("2", "Low", False), ("3", "High", True)], seen)
    question["desiredSizes"] *= 6
    try:
        scores.post(IDENTITY["location"], question)
        raise AssertionError("six sizes were accepted")
    except HttpResponseError as error:
        require(error.status_code == 400, str(error))


@check
def delete_pool():
    with slowly():
        poller = POOLS.begin_delete(*CLUSTER, "spotnew")
    require(POOLS.get(*CLUSTER, "spotnew").provisioning_state == "Deleting")
    require(poller.result() is None and poller.status() == "Succeeded", poller.status())
    refused(404, "NotFound", ResourceNotFoundError, lambda: POOLS.get(*CLUSTER, "spotnew"))


@check
def denied_action_is_403():
    write = "Microsoft.ContainerService/managedClusters/agentPools/write"
    control("PATCH", "auth", {"denied": [{"action": write}]})
    try:
        said = refused(403, "AuthorizationFailed", HttpResponseError, lambda: scale("rega", 2))
        require(f"'{write}' over scope '/subscriptions/" in said["message"], said)
    finally:
        control("PATCH", "auth", {"denied": []})


@check
def revoked_token_is_401_and_a_new_one_lets_in():
    control("DELETE", "tokens")
    refused(401, "InvalidAuthenticationToken", ClientAuthenticationError, lambda: POOLS.get(*CLUSTER, "rega"))
    again = client(ContainerServiceClient, credential=credential())
    require(again.agent_pools.get(*CLUSTER, "rega").name == "rega")


def main():
    for function in CHECKS:
        line = {"check": function.__name__, "ok": True}
        try:
            function()
        except Exception:  # whatever a client makes of an answer that it does not understand
            line |= {"ok": False, "detail": traceback.format_exc()}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
