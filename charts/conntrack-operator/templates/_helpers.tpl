{{- define "conntrack.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- if hasPrefix "@" $tag -}}
{{ .Values.image.repository }}{{ $tag }}
{{- else -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}
{{- end }}

{{/* A version may have a plus sign, as Flux gives one to charts from Git; a label may not. */}}
{{- define "conntrack.labels" -}}
app.kubernetes.io/name: conntrack-operator
app.kubernetes.io/version: {{ .Chart.AppVersion | replace "+" "_" | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end }}

{{- define "conntrack.controllerSelector" -}}
app.kubernetes.io/name: conntrack-operator
app.kubernetes.io/component: controller
{{- end }}

{{- define "conntrack.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "conntrack.restrictedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* What the controller reads with --agent-config. */}}
{{- define "conntrack.agentConfig" -}}
{{- $config := dict "apiVersion" "conntrack-operator.io/v1alpha1" "kind" "AgentConfig" -}}
{{- $config = merge $config .Values.agent -}}
{{- $_ := set $config "imagePullPolicy" .Values.image.pullPolicy -}}
{{- $_ := set $config "imagePullSecrets" .Values.image.pullSecrets -}}
{{- if .Values.metrics.enabled -}}
{{- $_ := set $config "metricsPort" .Values.metrics.agentPort -}}
{{- end -}}
{{- toYaml $config -}}
{{- end }}

{{/* The pod of the test and of the removal, but for its account and its arguments, which follow. */}}
{{- define "conntrack.shortPod" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
nodeSelector: {{- merge (dict "kubernetes.io/os" "linux") .root.Values.controller.nodeSelector | toYaml | nindent 2 }}
{{- with .root.Values.controller.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- /* Where the image can run; not where controllers want to be among each other. */ -}}
{{- with (.root.Values.controller.affinity | default dict).nodeAffinity }}
affinity: {nodeAffinity: {{ toJson . }}}
{{- end }}
securityContext: {{- include "conntrack.restrictedPod" .root | nindent 2 }}
containers:
  - name: {{ .name }}
    image: {{ include "conntrack.image" .root }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    terminationMessagePolicy: FallbackToLogsOnError
    resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {memory: 256Mi}}
    securityContext: {{- include "conntrack.restrictedContainer" .root | nindent 6 }}
{{- end }}

{{- define "conntrack.hook" -}}
annotations:
  helm.sh/hook: pre-delete
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
  # What the Job said is shown by helm uninstall, since the Job goes with it.
  helm.sh/hook-output-log-policy: hook-succeeded,hook-failed
  argocd.argoproj.io/hook: PreDelete
  argocd.argoproj.io/sync-wave: {{ .weight | quote }}
  argocd.argoproj.io/hook-delete-policy: BeforeHookCreation,HookSucceeded
labels: {{- include "conntrack.labels" .root | nindent 2 }}
  app.kubernetes.io/component: uninstall
{{- end }}

{{- define "conntrack.test" -}}
annotations:
  helm.sh/hook: test
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
labels: {{- include "conntrack.labels" .root | nindent 2 }}
  app.kubernetes.io/component: check
{{- end }}
