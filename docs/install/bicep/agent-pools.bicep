// Spot and on-demand agent pools for a SpotPool. Deploy it once: the counts are the operator's from then on, and a second
// deployment would set them back. Or leave this to the operator: `create` in a SpotPool makes agent pools.
//
//   az deployment group create --resource-group GROUP --template-file agent-pools.bicep --parameters clusterName=CLUSTER

@description('The AKS cluster, in the resource group of this deployment.')
param clusterName string

@description('Spot agent pools: several sizes and families, so that Azure seldom takes all at once.')
param spot { name: string, vmSize: string, count: int }[] = [
  { name: 'spotd8a', vmSize: 'Standard_D8s_v5', count: 2 }
  { name: 'spotd8b', vmSize: 'Standard_D8as_v5', count: 2 }
]

@description('On-demand agent pools: what stands in while spot is missing.')
param onDemand { name: string, vmSize: string, count: int }[] = [
  { name: 'regd8', vmSize: 'Standard_D8s_v5', count: 0 }
]

@description('Availability zones of the agent pools.')
param zones string[] = []

resource cluster 'Microsoft.ContainerService/managedClusters@2025-10-01' existing = {
  name: clusterName
}

resource spotPools 'Microsoft.ContainerService/managedClusters/agentPools@2025-10-01' = [
  for pool in spot: {
    parent: cluster
    name: pool.name
    properties: {
      mode: 'User'
      type: 'VirtualMachineScaleSets'
      vmSize: pool.vmSize
      count: pool.count
      scaleSetPriority: 'Spot'
      scaleSetEvictionPolicy: 'Delete'
      // Up to the price on demand: who bids lower is evicted for the price as well.
      spotMaxPrice: -1
      availabilityZones: zones
    }
  }
]

resource onDemandPools 'Microsoft.ContainerService/managedClusters/agentPools@2025-10-01' = [
  for pool in onDemand: {
    parent: cluster
    name: pool.name
    properties: {
      mode: 'User'
      type: 'VirtualMachineScaleSets'
      vmSize: pool.vmSize
      count: pool.count
      availabilityZones: zones
    }
  }
]
