{{- /* A CronJob's name has at most 52 characters. */ -}}
{{- define "taskrunning.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 37 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 37 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- /* Labels that select the pods of a component; (list . "router"). */ -}}
{{- define "taskrunning.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "taskrunning.labels" -}}
{{ include "taskrunning.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" }}
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* A number of a values file is a float, which would be written as 1e+06. */ -}}
{{- define "taskrunning.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- define "taskrunning.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{- with $root.Values.image.registry }}{{ . }}/{{ end }}{{ $image.name }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $root.Values.image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* The part of the values that a component's database role has, with defaults; (list . "reader"). JSON. */ -}}
{{- define "taskrunning.database" -}}
{{- $root := index . 0 }}
{{- $role := index $root.Values.database (index . 1) }}
{{- if not $role.url }}{{ $role = $root.Values.database.writer }}{{ end }}
{{- $mysql := regexMatch "^(mysql|mariadb):" $role.url }}
{{- dict "url" $role.url "secret" $role.secret "key" ($role.key | default (ternary "password" "pgpass" $mysql)) "mysql" $mysql | toJson }}
{{- end }}

{{- /* Names of the Secrets of a Kafka user; (list . "router"). JSON. */ -}}
{{- define "taskrunning.kafkaUser" -}}
{{- $root := index . 0 }}
{{- $user := index $root.Values.kafka.users (index . 1) }}
{{- $certificate := $user.certificateSecret }}
{{- if and $root.Values.strimzi.enabled (not $user.configSecret) }}
{{- $certificate = $certificate | default (printf "%s-%s" (include "taskrunning.fullname" $root) (index . 1)) }}
{{- end }}
{{- dict "config" $user.configSecret "certificate" $certificate | toJson }}
{{- end }}

{{- define "taskrunning.kafkaCa" -}}
{{- .Values.kafka.caSecret.name | default (ternary (printf "%s-cluster-ca-cert" .Values.strimzi.cluster) "" .Values.strimzi.enabled) }}
{{- end }}

{{- /* Settings of the Kafka clients that are not secret: lines of kafka.conf; (list . "router"). */ -}}
{{- define "taskrunning.kafkaConfig" -}}
{{- $root := index . 0 }}
{{- $user := include "taskrunning.kafkaUser" . | fromJson }}
{{- $config := dict }}
{{- if include "taskrunning.kafkaCa" $root }}
{{- $config = dict "security.protocol" "SSL" "ssl.ca.location" "/etc/taskrunning/kafka-ca.crt" }}
{{- end }}
{{- if $user.certificate }}
{{- $config = merge (dict "security.protocol" "SSL" "ssl.certificate.location" "/etc/taskrunning/kafka-user.crt" "ssl.key.location" "/etc/taskrunning/kafka-user.key") $config }}
{{- end }}
{{- range $key, $value := merge (deepCopy $root.Values.kafka.config) $config }}
{{ $key }}={{ include "taskrunning.text" $value }}
{{- end }}
{{- end }}

{{- /*
A pod template's metadata and spec. Takes a dict:
  root, component
  values        nodeSelector and so on
  container     the main container, without what all containers have
  image
  kafka         name of the Kafka user, or none
  database      role, or none
  files         further sources of the projected volume
  restartPolicy of Jobs
  first         further init containers, as container
*/ -}}
{{- define "taskrunning.pod" -}}
{{- $root := .root }}
{{- $values := .values | default dict }}
{{- $name := include "taskrunning.fullname" $root }}
{{- $image := include "taskrunning.image" (list $root .image) }}
{{- $sources := .files | default list }}
{{- $env := list (dict "name" "LOG_FORMAT" "value" $root.Values.logFormat) (dict "name" "LOG_LEVEL" "value" $root.Values.logLevel) }}
{{- $passfile := "" }}
{{- if .kafka }}
{{- $user := include "taskrunning.kafkaUser" (list $root .kafka) | fromJson }}
{{- if $user.config }}
{{- $sources = append $sources (dict "secret" (dict "name" $user.config "items" (list (dict "key" "kafka.conf" "path" "kafka.conf")))) }}
{{- else }}
{{- $sources = append $sources (dict "configMap" (dict "name" (printf "%s-kafka" $name) "items" (list (dict "key" (printf "%s.conf" .kafka) "path" "kafka.conf")))) }}
{{- end }}
{{- with include "taskrunning.kafkaCa" $root }}
{{- $sources = append $sources (dict "secret" (dict "name" . "items" (list (dict "key" $root.Values.kafka.caSecret.key "path" "kafka-ca.crt")))) }}
{{- end }}
{{- if $user.certificate }}
{{- $sources = append $sources (dict "secret" (dict "name" $user.certificate "items" (list (dict "key" $root.Values.kafka.certificateKeys.certificate "path" "kafka-user.crt") (dict "key" $root.Values.kafka.certificateKeys.key "path" "kafka-user.key")))) }}
{{- end }}
{{- $env = concat $env (list (dict "name" "KAFKA_BOOTSTRAP_SERVERS" "value" $root.Values.kafka.bootstrapServers) (dict "name" "KAFKA_CONFIG" "value" "/etc/taskrunning/kafka.conf")) }}
{{- with $root.Values.schemaRegistry.url }}{{ $env = append $env (dict "name" "SCHEMA_REGISTRY_URL" "value" .) }}{{ end }}
{{- with $root.Values.schemasConfigMap }}{{ $env = append $env (dict "name" "SCHEMAS_DIR" "value" "/etc/taskrunning-schemas") }}{{ end }}
{{- end }}
{{- if .database }}
{{- $database := include "taskrunning.database" (list $root .database) | fromJson }}
{{- $env = append $env (dict "name" "DATABASE_URL" "value" $database.url) }}
{{- if $database.secret }}
{{- $sources = append $sources (dict "secret" (dict "name" $database.secret "items" (list (dict "key" $database.key "path" "database-password")))) }}
{{- if $database.mysql }}
{{- $env = append $env (dict "name" "MYSQL_PWD_FILE" "value" "/etc/taskrunning/database-password") }}
{{- else }}
{{- $passfile = "/run/taskrunning/pgpass" }}
{{- $env = append $env (dict "name" "PGPASSFILE" "value" $passfile) }}
{{- end }}
{{- end }}
{{- with $root.Values.database.caSecret }}
{{- if .name }}{{ $sources = append $sources (dict "secret" (dict "name" .name "items" (list (dict "key" .key "path" "database-ca.crt")))) }}{{ end }}
{{- end }}
{{- end }}
{{- range $root.Values.files }}
{{- $sources = append $sources (dict "secret" (dict "name" .secret "items" (list (dict "key" .key "path" .path)))) }}
{{- end }}
{{- $own := concat $env (.container.env | default list) ($values.env | default list) }}
{{- $names := list }}
{{- range $own }}
{{- if has .name $names }}
{{- fail (printf "%s: the environment variable %s is given twice; the chart itself sets it by other values" $.component .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- $paths := list }}
{{- range $sources }}
{{- range (.secret | default .configMap).items }}
{{- if has .path $paths }}{{ fail (printf "files: %s: /etc/taskrunning/%s is mounted already" $.component .path) }}{{ end }}
{{- $paths = append $paths .path }}
{{- end }}
{{- end }}
{{- $texts := list }}
{{- range $own }}{{ $texts = append $texts (.value | default "") }}{{ end }}
{{- if and .kafka (has "kafka.conf" $paths) }}
{{- if not (include "taskrunning.kafkaUser" (list $root .kafka) | fromJson).config }}{{ $texts = append $texts (include "taskrunning.kafkaConfig" (list $root .kafka)) }}{{ end }}
{{- end }}
{{- range regexFindAll "/etc/taskrunning/[A-Za-z0-9._-]+" (join "\n" $texts) -1 }}
{{- if not (has (base .) $paths) }}
{{- fail (printf "%s: a setting names %s, which is not mounted: give database.caSecret.name, kafka.caSecret.name or files" $.component .) }}
{{- end }}
{{- end }}
{{- $mounts := list }}
{{- $volumes := list }}
{{- if $sources }}
{{- $mounts = append $mounts (dict "name" "config" "mountPath" "/etc/taskrunning" "readOnly" true) }}
{{- $volumes = append $volumes (dict "name" "config" "projected" (dict "defaultMode" 288 "sources" $sources)) }}
{{- end }}
{{- if and .kafka $root.Values.schemasConfigMap }}
{{- $mounts = append $mounts (dict "name" "schemas" "mountPath" "/etc/taskrunning-schemas" "readOnly" true) }}
{{- $volumes = append $volumes (dict "name" "schemas" "configMap" (dict "name" $root.Values.schemasConfigMap)) }}
{{- end }}
{{- if $passfile }}
{{- $mounts = append $mounts (dict "name" "run" "mountPath" "/run/taskrunning") }}
{{- $volumes = append $volumes (dict "name" "run" "emptyDir" (dict "medium" "Memory" "sizeLimit" "1Mi")) }}
{{- end }}
{{- $security := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) }}
{{- $common := dict "image" $image "imagePullPolicy" $root.Values.image.pullPolicy "securityContext" $security "volumeMounts" $mounts }}
metadata:
  labels:
    {{- include "taskrunning.selector" (list $root .component) | nindent 4 }}
    {{- with merge dict ($values.podLabels | default dict) $root.Values.commonLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    kubectl.kubernetes.io/default-container: {{ .component }}
    {{- if .kafka }}
    # A change of these settings restarts the pods.
    checksum/kafka: {{ include "taskrunning.kafkaConfig" (list $root .kafka) | sha256sum }}
    {{- end }}
    {{- with $values.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $root.Values.serviceAccountName }}
  serviceAccountName: {{ . }}
  {{- end }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with $root.Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .restartPolicy }}
  restartPolicy: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ $root.Values.terminationGracePeriodSeconds }}
  securityContext:
    {{- toYaml $root.Values.podSecurityContext | nindent 4 }}
  {{- if or $passfile .first }}
  initContainers:
    {{- if $passfile }}
    # A pgpass file that its group may read is ignored, and files of Secrets are readable for fsGroup.
    - name: pgpass
      {{- $copy := dict "command" (list "install" "-m" "0400" "/etc/taskrunning/database-password" $passfile) "resources" .container.resources }}
      {{- mergeOverwrite (deepCopy $common) $copy | toYaml | nindent 6 }}
    {{- end }}
    {{- range .first }}
    -
      {{- mergeOverwrite (deepCopy $common) . (dict "env" $own) | toYaml | nindent 6 }}
    {{- end }}
  {{- end }}
  containers:
    - name: {{ .component }}
      {{- mergeOverwrite (deepCopy $common) .container (dict "env" $own) | toYaml | nindent 6 }}
  {{- with $volumes }}
  volumes:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if and (not .restartPolicy) $root.Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range $root.Values.topologySpreadConstraints }}
    -
      {{- merge (dict "labelSelector" (dict "matchLabels" (include "taskrunning.selector" (list $root $.component) | fromYaml))) . | toYaml | nindent 6 }}
    {{- end }}
  {{- end }}
{{- end }}

{{- /* Ports and probes of a long-running container. JSON, for container. */ -}}
{{- define "taskrunning.health" -}}
{{- $livez := dict "httpGet" (dict "path" "/livez" "port" "metrics") "timeoutSeconds" 5 }}
{{- dict
  "ports" (list (dict "name" "metrics" "containerPort" 9100))
  "startupProbe" (merge (dict "periodSeconds" 2 "failureThreshold" 60) $livez)
  "livenessProbe" (merge (dict "periodSeconds" 10 "failureThreshold" 6) $livez)
  "readinessProbe" (dict "httpGet" (dict "path" "/readyz" "port" "metrics") "periodSeconds" 5 "timeoutSeconds" 5 "failureThreshold" 3)
  | toJson }}
{{- end }}
