// The operator's identity, its trust in the operator's ServiceAccount, and its roles. Safe to deploy again.
//
//   az deployment group create --resource-group GROUP --template-file main.bicep --parameters clusterName=CLUSTER
//
// The cluster needs its OIDC issuer and workload identity. Agent pools: agent-pools.bicep.

@description('The AKS cluster, in the resource group of this deployment.')
param clusterName string

@description('The resource group of the nodes, if the cluster was not left the usual one.')
param nodeResourceGroup string = 'MC_${resourceGroup().name}_${clusterName}_${location}'

@description('The region of the cluster.')
param location string = resourceGroup().location

@description('The namespace that the chart is installed into.')
param namespace string = 'spotpool-system'

@description('Name of the identity.')
param identityName string = 'spotpool-${clusterName}'

resource cluster 'Microsoft.ContainerService/managedClusters@2025-10-01' existing = {
  name: clusterName
}

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: identityName
  location: location
}

resource federated 'Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials@2023-01-31' = {
  parent: identity
  name: 'spotpool-operator'
  properties: {
    issuer: cluster.properties.oidcIssuerProfile.issuerURL
    subject: 'system:serviceaccount:${namespace}:spotpool-operator'
    audiences: ['api://AzureADTokenExchange']
  }
}

module onSubscription 'subscription.bicep' = {
  name: 'spotpool-subscription-${uniqueString(cluster.id)}'
  scope: subscription()
  params: {
    principalId: identity.properties.principalId
  }
}

resource onCluster 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(cluster.id, identity.id, 'cluster')
  scope: cluster
  properties: {
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: onSubscription.outputs.clusterRole
  }
}

module onNodes 'node-group.bicep' = {
  name: 'spotpool-nodes-${uniqueString(cluster.id)}'
  scope: resourceGroup(nodeResourceGroup)
  params: {
    principalId: identity.properties.principalId
    roleDefinitionId: onSubscription.outputs.nodesRole
  }
}

@description('The chart wants it as azure.clientId.')
output clientId string = identity.properties.clientId
