{{/* What the schema cannot say, or could say by a regular expression only: refused in words, with the value's name. */}}
{{- define "dpumesh.check" -}}
{{- $ip := `^[0-9]{1,3}(\.[0-9]{1,3}){3}$|^[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*$` -}}
{{- $host := `^$|^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$|^[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*$` -}}
{{- $object := `^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$` -}}
{{- $path := `^/[^\s:]*[^/\s:]$` -}}
{{- with .Values -}}
{{- $texts := list
  (list "image.registry" .image.registry `^$|^[a-z0-9][a-zA-Z0-9.:/_-]*/$` "a registry and path with a slash at its end, e.g. registry.example/mesh/")
  (list "image.tag" .image.tag `^$|^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$` "an image tag")
  (list "apiServer.host" .apiServer.host $host "a host name or an address, without https:// and port")
  (list "apiServer.port" .apiServer.port `^$|^[1-9][0-9]{0,4}$` "a port")
  (list "istiod.address" .istiod.address `^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]):[1-9][0-9]{0,4}$` "HOST:PORT without https://, e.g. istiod.istio-system.svc:15012")
  (list "istiod.serverName" .istiod.serverName $object "a DNS name")
  (list "istiod.rootCertConfigMap" .istiod.rootCertConfigMap $object "the name of a ConfigMap")
  (list "istiod.trustDomain" .istiod.trustDomain $object "a trust domain, e.g. cluster.local")
  (list "istiod.rootNamespace" .istiod.rootNamespace `^[a-z0-9]([a-z0-9-]*[a-z0-9])?$` "the name of a namespace")
  (list "management.hostAddress" .management.hostAddress $ip "an IP address")
  (list "management.dpuAddress" .management.dpuAddress $ip "an IP address")
  (list "dpu.uplink" .dpu.uplink `^[A-Za-z0-9_.-]{1,15}$` "the name of a network interface (at most 15 characters)")
  (list "dpu.hostInterface" .dpu.hostInterface `^$|^[A-Za-z0-9_.-]{1,15}$` "the name of a network interface (at most 15 characters), or nothing")
  (list "cniNode.podGateway" .cniNode.podGateway (printf "^$|%s" $ip) "an IP address, or nothing")
  (list "health.address" .health.address $ip "an IP address")
  (list "ca.existingSecret" .ca.existingSecret (printf "^$|%s" $object) "the name of a Secret")
  (list "ca.existingCertificate" .ca.existingCertificate `^$|^-----BEGIN CERTIFICATE-----` "a PEM certificate (-----BEGIN CERTIFICATE-----)")
  (list "controller.address" .controller.address $host "a host name or an address, without https:// and port")
  (list "cniNode.vfPrefix" .cniNode.vfPrefix `^[A-Za-z0-9_.-]{1,15}$` "the name of a network interface (at most 15 characters)")
  (list "cniNode.representorPrefix" .cniNode.representorPrefix `^[A-Za-z0-9_.-]{1,12}$` "the name of a network interface without its number (at most 12 characters)")
  (list "cniNode.binDir" .cniNode.binDir $path "an absolute path")
  (list "cniNode.confDir" .cniNode.confDir $path "an absolute path")
  (list "cniNode.confName" .cniNode.confName `^[0-9A-Za-z._-]+\.conflist$` "a file name that ends in .conflist")
  (list "cniNode.networkName" .cniNode.networkName `^[A-Za-z0-9][A-Za-z0-9_.-]*$` "a name of letters, digits, '_', '.', '-'")
-}}
{{- range $texts }}
{{- if not (regexMatch (index . 2) (toString (index . 1))) }}
{{- fail (printf "\n\n  %s is %q: expected %s\n" (index . 0) (toString (index . 1)) (index . 3)) }}
{{- end }}
{{- end }}
{{- range $program, $args := dict "controller" .controller.extraArgs "adapter" .adapter.extraArgs "cniNode" .cniNode.extraArgs }}
{{- range $args }}
{{- if not (hasPrefix "--" .) }}
{{- fail (printf "\n\n  %s.extraArgs has %q: expected --NAME=VALUE\n" $program .) }}
{{- end }}
{{- end }}
{{- end }}
{{- if ne (empty .apiServer.host) (empty (toString .apiServer.port)) }}
{{- fail "\n\n  apiServer.host and apiServer.port: give both, or neither\n" }}
{{- end }}
{{- if and .ca.existingSecret (not .ca.existingCertificate) }}
{{- fail "\n\n  ca.existingCertificate is missing: give the PEM certificate that is in the Secret ca.existingSecret\n" }}
{{- end }}
{{- if and .ca.existingCertificate (not .ca.existingSecret) }}
{{- fail "\n\n  ca.existingCertificate is given without ca.existingSecret\n" }}
{{- end }}
{{- if and .dpu.hostInterface (eq .dpu.hostInterface .dpu.uplink) }}
{{- fail "\n\n  dpu.hostInterface and dpu.uplink are the same: the host needs a link of its own to the DPU\n" }}
{{- end }}
{{- if and .cniNode.podGateway (not .dpu.hostInterface) }}
{{- fail "\n\n  cniNode.podGateway is given without dpu.hostInterface: the DPU would not take what the host sends there\n" }}
{{- end }}
{{- if and .cniNode.podGateway (has .cniNode.podGateway (list .management.hostAddress .management.dpuAddress)) }}
{{- fail "\n\n  cniNode.podGateway is an address of the management link: give the DPU's address on the network of dpu.hostInterface\n" }}
{{- end }}
{{- if eq .management.hostAddress .management.dpuAddress }}
{{- fail "\n\n  management.hostAddress and management.dpuAddress are the same: they are the two ends of the link to the DPU\n" }}
{{- end }}
{{- end }}
{{- end -}}
