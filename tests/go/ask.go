package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	authv1 "auth.texture/go/texture/auth/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// README: begin
// ask says whether the holder of an API key may do this, and what a public API should answer with. No answer is a no.
func ask(ctx context.Context, auth authv1.AuthorizeServiceClient, question *authv1.AuthorizeRequest) (bool, int) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	answer, err := auth.Authorize(ctx, question)
	switch {
	case err == nil && answer.Decision == authv1.Decision_DECISION_ALLOW:
		return true, 200
	case err == nil && answer.Decision == authv1.Decision_DECISION_DENY:
		return false, int(answer.HttpStatusCode)
	}
	return false, 503
}

// README: end

// Who calls, and where.
type caller struct {
	address, caFile, certificateFile, privateKeyFile, key string
}

// callerFrom reads NAME_ADDRESS, NAME_KEY_FILE, NAME_CERTIFICATE and NAME_PRIVATE_KEY, the last three of which may be
// missing.
func callerFrom(name string) caller {
	found := caller{
		address:         os.Getenv(name + "_ADDRESS"),
		caFile:          os.Getenv("CA"),
		certificateFile: os.Getenv(name + "_CERTIFICATE"),
		privateKeyFile:  os.Getenv(name + "_PRIVATE_KEY"),
	}
	if file := os.Getenv(name + "_KEY_FILE"); file != "" {
		key, err := os.ReadFile(file)
		must(err)
		found.key = strings.TrimSpace(string(key))
	}
	return found
}

// connect makes a connection that proves who calls by a key, by a certificate or by neither.
func (c caller) connect() *grpc.ClientConn {
	authority, err := os.ReadFile(c.caFile)
	must(err)
	trusted := x509.NewCertPool()
	if !trusted.AppendCertsFromPEM(authority) {
		must(errors.New("CA holds no certificate"))
	}
	config := &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12}
	if c.certificateFile != "" {
		pair, err := tls.LoadX509KeyPair(c.certificateFile, c.privateKeyFile)
		must(err)
		config.Certificates = []tls.Certificate{pair}
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(config))}
	if c.key != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(c.key)))
	}
	connection, err := grpc.NewClient(c.address, options...)
	must(err)
	return connection
}

// bearer is a caller's key, which goes along with each call, and never without TLS.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (b bearer) RequireTransportSecurity() bool { return true }

// failure is an error as a caller can act on it: the reason is empty where the service itself said nothing.
type failure struct {
	code     codes.Code
	reason   string
	metadata map[string]string
	fields   []string
	retry    bool
}

func failureOf(err error) failure {
	found := failure{code: status.Code(err)}
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Domain != "auth.texture" {
				must(fmt.Errorf("an error of the domain %q", detail.Domain))
			}
			found.reason, found.metadata = detail.Reason, detail.Metadata
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				found.fields = append(found.fields, violation.Field)
			}
		case *errdetails.RetryInfo:
			found.retry = true
		}
	}
	return found
}

// Of codes as the service's documents write them.
var names = map[codes.Code]string{
	codes.OK: "OK", codes.InvalidArgument: "INVALID_ARGUMENT", codes.DeadlineExceeded: "DEADLINE_EXCEEDED",
	codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS", codes.PermissionDenied: "PERMISSION_DENIED",
	codes.ResourceExhausted: "RESOURCE_EXHAUSTED", codes.FailedPrecondition: "FAILED_PRECONDITION",
	codes.Unavailable: "UNAVAILABLE", codes.Unauthenticated: "UNAUTHENTICATED",
}

func nameOf(code codes.Code) string {
	if name, known := names[code]; known {
		return name
	}
	return code.String()
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
