{{/*
config as ringcast.toml: what `ringcast.config` makes of it, and the small writer of TOML that renders it.
*/}}

{{/* The settings, as JSON: values below `config`, files found where the Secret is mounted, and the simulator in Apple's place. */}}
{{- define "ringcast.config" -}}
{{- $config := deepCopy (.Values.config | default dict) -}}
{{- $amqp := $config.amqp | default dict -}}
{{- if not $amqp.uri_file -}}
{{- $_ := set $amqp "uri_file" .Values.amqpUriKey -}}
{{- end -}}
{{- $_ := set $config "amqp" $amqp -}}
{{- if .Values.simulator.enabled -}}
{{- include "ringcast.config.simulated" (dict "config" $config "root" .) -}}
{{- end -}}
{{- include "ringcast.config.files" (dict "table" $config.amqp "keys" (list "uri_file" "ca_file" "client_cert_file" "client_key_file")) -}}
{{- include "ringcast.config.files" (dict "table" $config.apns "keys" (list "ca_file" "proxy_credentials_file")) -}}
{{- include "ringcast.config.files" (dict "table" $config.traces "keys" (list "ca_file" "headers_file")) -}}
{{- range $app := $config.apps -}}
{{- range $name := list "auth" "auth_sandbox" -}}
{{- include "ringcast.config.files" (dict "table" (get $app $name) "keys" (list "key_file" "cert_file")) -}}
{{- end -}}
{{- end -}}
{{- $config | toJson -}}
{{- end -}}

{{/* Names of files without a leading / lie below the mounted Secret. Changes `table`; writes nothing. */}}
{{- define "ringcast.config.files" -}}
{{- $table := .table -}}
{{- range $key := .keys -}}
{{- $file := get ($table | default dict) $key -}}
{{- if and $file (not (hasPrefix "/" $file)) -}}
{{- $_ := set $table $key (printf "%s/%s" (include "ringcast.secretsDir" $) $file) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The simulator in place of both of Apple's environments, trusted by its CA, and its key for every app. Changes `config`. */}}
{{- define "ringcast.config.simulated" -}}
{{- $root := .root -}}
{{- $dir := include "ringcast.simulator.dir" $root -}}
{{- $url := printf "https://%s:%d" (include "ringcast.simulator.name" $root) (include "ringcast.simulator.port" $root | int) -}}
{{- $apns := omit (.config.apns | default dict) "proxy" "proxy_credentials_file" -}}
{{- $_ := set .config "apns" (merge (dict "production" $url "sandbox" $url "ca_file" (printf "%s/ca.pem" $dir)) $apns) -}}
{{- $simulator := $root.Values.simulator -}}
{{- range $app := .config.apps -}}
{{- $key := printf "%s/AuthKey_%s.p8" $dir $simulator.keyId -}}
{{- $_ := set $app "auth" (dict "team_id" $simulator.teamId "key_id" $simulator.keyId "key_file" $key) -}}
{{- $_ := unset $app "auth_sandbox" -}}
{{- end -}}
{{- end -}}

{{/* One table: its values first, then the tables below it, each in the order of its keys. `path` is its dotted name, "" at the
top. A table of nothing but tables needs no line of its own. */}}
{{- define "ringcast.toml.table" -}}
{{- $path := .path -}}
{{- range $key, $value := .table -}}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value)) }}
{{ include "ringcast.toml.key" $key }} = {{ include "ringcast.toml.value" $value }}
{{- end -}}
{{- end -}}
{{- range $key, $value := .table -}}
{{- if kindIs "map" $value -}}
{{- $below := trimPrefix "." (printf "%s.%s" $path (include "ringcast.toml.key" $key)) -}}
{{- $text := include "ringcast.toml.table" (dict "path" $below "table" $value) -}}
{{- if not (hasPrefix "\n\n" $text) }}

[{{ $below }}]
{{- end -}}
{{- $text -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "ringcast.toml.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ include "ringcast.toml.text" . }}{{ end -}}
{{- end -}}

{{/* Helm reads numbers as floats, from --set as integers: a whole one is written as such, whatever it came as. */}}
{{- define "ringcast.toml.value" -}}
{{- if kindIs "string" . -}}
{{- include "ringcast.toml.text" . -}}
{{- else if kindIs "slice" . -}}
{{- $values := list -}}
{{- range . }}{{ $values = append $values (include "ringcast.toml.value" .) }}{{ end -}}
[{{ join ", " $values }}]
{{- else if kindIs "float64" . -}}
{{- if eq (floor .) . }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* JSON's escapes are TOML's, too. Of what JSON writes as it is, TOML does not take U+007F, and to YAML U+0085 is a new line. */}}
{{- define "ringcast.toml.text" -}}
{{- toRawJson . | replace "\u007f" "\\u007f" | replace "\u0085" "\\u0085" -}}
{{- end -}}
