{{/* Labels of every object; of one program: dict "root" $ "program" NAME */}}
{{- define "dpumesh.labels" -}}
app.kubernetes.io/name: dpumesh
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: dpumesh
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{ include "dpumesh.selector" . }}
{{- end -}}

{{/* What selects a program's pods; never changes. */}}
{{- define "dpumesh.selector" -}}
app.kubernetes.io/component: {{ .program }}
{{- end -}}

{{- define "dpumesh.image" -}}
{{ printf "%sdpumesh/%s:%s" .root.Values.image.registry .program (.root.Values.image.tag | default .root.Chart.AppVersion) }}
{{- end -}}

{{- define "dpumesh.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Flags that all programs have. */}}
{{- define "dpumesh.commonArgs" -}}
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- end -}}

{{/* HOST of the controller in a URI; kubelet puts the Service's address in. */}}
{{- define "dpumesh.controllerHost" -}}
{{- if .Values.controller.address -}}
{{ include "dpumesh.uriHost" .Values.controller.address }}
{{- else if eq .Values.controller.service.ipFamily "IPv6" -}}
[$(DPUMESH_CONTROLLER_SERVICE_HOST)]
{{- else -}}
$(DPUMESH_CONTROLLER_SERVICE_HOST)
{{- end -}}
{{- end -}}

{{/* An address as the host of a URI: IPv6 in brackets. */}}
{{- define "dpumesh.uriHost" -}}
{{- if contains ":" . -}}[{{ . }}]{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{/* Where the API server is, when the Service `kubernetes` is not to be used. */}}
{{- define "dpumesh.apiServerEnv" -}}
{{- with .Values.apiServer }}
{{- if .host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .port | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The probes of a program that serves health on port .port. A program that is not ready is not restarted. */}}
{{- define "dpumesh.probes" -}}
{{- $host := .root.Values.health.address -}}
{{- if or (eq $host "0.0.0.0") (eq $host "::") }}{{ $host = "127.0.0.1" }}{{ end -}}
startupProbe:
  httpGet: {host: {{ $host | quote }}, path: /healthz, port: {{ .port }}}
  initialDelaySeconds: 1
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {host: {{ $host | quote }}, path: /healthz, port: {{ .port }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {host: {{ $host | quote }}, path: /readyz, port: {{ .port }}}
  periodSeconds: 2
  timeoutSeconds: 5
{{- end -}}

{{/* Which nodes have a DPU. */}}
{{- define "dpumesh.dpuNodes" -}}
nodeSelector:
  kubernetes.io/os: linux
{{- with .Values.dpuNodes.nodeSelector }}
{{ toYaml . | indent 2 }}
{{- end }}
{{- with .Values.dpuNodes.affinity }}
affinity:
{{ toYaml . | indent 2 }}
{{- end }}
{{- with .Values.dpuNodes.tolerations }}
tolerations:
{{ toYaml . | indent 2 }}
{{- end }}
{{- end -}}

{{/* Token by which a program enrols with the controller, and the authority that it trusts. */}}
{{- define "dpumesh.enrolVolumes" -}}
- name: enrol
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {audience: dpumesh, expirationSeconds: 3600, path: token}
      - configMap:
          name: {{ include "dpumesh.caConfigMap" . }}
          items: [{key: ca.crt, path: ca.crt}]
{{- end -}}

{{- define "dpumesh.enrolArgs" -}}
- --controller=https://{{ include "dpumesh.controllerHost" . }}:15100
- --enroll=https://{{ include "dpumesh.controllerHost" . }}:15102
- --enroll-token=/var/run/secrets/dpumesh/token
- --tls-ca=/var/run/secrets/dpumesh/ca.crt
{{- end -}}

{{- define "dpumesh.enrolMounts" -}}
- {name: enrol, mountPath: /var/run/secrets/dpumesh, readOnly: true}
{{- end -}}

{{- define "dpumesh.caSecret" -}}
{{ .Values.ca.existingSecret | default "dpumesh-ca" }}
{{- end -}}

{{- define "dpumesh.caConfigMap" -}}
dpumesh-ca
{{- end -}}
