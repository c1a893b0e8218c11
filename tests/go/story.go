package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	authv1 "auth.texture/go/texture/auth/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const redirectURI = "https://app.acme.example/connected?lang=en"

var browser = &authv1.RequestContext{
	ClientIp: "198.51.100.7", Origin: "https://app.acme.example", SecFetchSite: "cross-site", SecFetchMode: "cors",
	UserAgent: "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
}

// What is expected of a question.
type expected struct {
	reason authv1.Reason
	http   int32
}

func (e expected) String() string {
	return strings.TrimPrefix(e.reason.String(), "REASON_") + " " + strconv.Itoa(int(e.http))
}

var (
	permitted    = expected{authv1.Reason_REASON_PERMITTED, 200}
	notGranted   = expected{authv1.Reason_REASON_PERMISSION_NOT_GRANTED, 403}
	notPermitted = expected{authv1.Reason_REASON_DEVICE_NOT_PERMITTED, 403}
	notFound     = expected{authv1.Reason_REASON_DEVICE_NOT_FOUND, 404}
	revoked      = expected{authv1.Reason_REASON_KEY_REVOKED, 401}
	exposed      = expected{authv1.Reason_REASON_KEY_EXPOSED, 403}
	retired      = expected{authv1.Reason_REASON_KEY_RETIRED, 401}
	expired      = expected{authv1.Reason_REASON_KEY_EXPIRED, 401}
	missing      = expected{authv1.Reason_REASON_KEY_MISSING, 401}
	malformed    = expected{authv1.Reason_REASON_KEY_MALFORMED, 401}
)

// story is played by two callers: an operator with a key, and a device API with a certificate.
type story struct {
	ctx        context.Context
	name       string
	workspace  string
	operator   *grpc.ClientConn
	deviceAPI  *grpc.ClientConn
	keys       authv1.KeyServiceClient
	workspaces authv1.WorkspaceServiceClient
	connects   authv1.ConnectServiceClient
	devices    authv1.DeviceServiceClient
	auth       authv1.AuthorizeServiceClient
	lines      int
}

func playStory(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	operator, deviceAPI := callerFrom("OPERATOR").connect(), callerFrom("CALLER").connect()
	defer operator.Close()
	defer deviceAPI.Close()
	s := &story{
		ctx: ctx, name: name, workspace: "acme-" + name, operator: operator, deviceAPI: deviceAPI,
		keys:       authv1.NewKeyServiceClient(operator),
		workspaces: authv1.NewWorkspaceServiceClient(operator),
		connects:   authv1.NewConnectServiceClient(operator),
		devices:    authv1.NewDeviceServiceClient(operator),
		auth:       authv1.NewAuthorizeServiceClient(deviceAPI),
	}
	s.callers()
	s.workspaceAndDevices()
	backend := s.serverKeys()
	scoped := s.connectFlow()
	s.scopedKey(scoped)
	s.rotation()
	s.expiry()
	s.batch(backend, scoped)
	s.leak()
	s.noKeys()
	fmt.Println(s.lines, "lines, none wrong")
}

// check ends the program at the first thing that is not as it should be.
func (s *story) check(what string, found, want any) {
	if !reflect.DeepEqual(found, want) {
		must(fmt.Errorf("WRONG  %s: %v, expected %v", what, found, want))
	}
	s.lines++
	fmt.Println("ok    ", what, found)
}

func (s *story) question(who, apiKey, permission, device string, seen *authv1.RequestContext, want expected) *authv1.AuthorizeResponse {
	answer, err := s.auth.Authorize(s.ctx, &authv1.AuthorizeRequest{
		ApiKey: apiKey, Permission: permission, DeviceId: device, Context: seen,
	})
	must(err)
	what := fmt.Sprint(who, ": ", permission, " ", device)
	s.check(what, expected{answer.Reason, answer.HttpStatusCode}, want)
	decision := authv1.Decision_DECISION_DENY
	if want == permitted {
		decision = authv1.Decision_DECISION_ALLOW
	}
	if answer.Decision != decision {
		must(fmt.Errorf("WRONG  %s: %v", what, answer.Decision))
	}
	if want == notGranted {
		s.check(who+": what is missing", answer.MissingPermission, permission)
	}
	return answer
}

func (s *story) refused(what string, err error, code codes.Code, reason string) failure {
	found := failureOf(err)
	s.check(what, nameOf(found.code)+" "+found.reason, nameOf(code)+" "+reason)
	return found
}

func (s *story) callers() {
	_, err := s.auth.Authorize(s.ctx, &authv1.AuthorizeRequest{Permission: "devices:list"})
	s.refused("a certificate that names nobody", err, codes.Unauthenticated, "CALLER_CERTIFICATE_UNKNOWN")
	_, err = authv1.NewCallerServiceClient(s.operator).CreateCaller(s.ctx, &authv1.CreateCallerRequest{
		CallerId: "device-api-" + s.name, Roles: []authv1.Role{authv1.Role_ROLE_AUTHORIZER},
		CertificateNames: []string{os.Getenv("CERTIFICATE_NAME")}, WithoutKey: true,
	})
	must(err)
	_, err = authv1.NewWorkspaceServiceClient(s.deviceAPI).ListWorkspaces(s.ctx, &authv1.ListWorkspacesRequest{})
	found := s.refused("a caller without the role", err, codes.PermissionDenied, "CALLER_ROLE_MISSING")
	s.check("  is told the roles", found.metadata["roles"] != "", true)
}

func (s *story) workspaceAndDevices() {
	request := &authv1.CreateWorkspaceRequest{
		WorkspaceId: s.workspace, DisplayName: "Acme Energy", Environment: authv1.Environment_ENVIRONMENT_SANDBOX,
	}
	_, err := s.workspaces.CreateWorkspace(s.ctx, request)
	must(err)
	_, err = s.workspaces.CreateWorkspace(s.ctx, request)
	s.refused("a workspace again", err, codes.AlreadyExists, "WORKSPACE_EXISTS")
	request.WorkspaceId = "V"
	_, err = s.workspaces.CreateWorkspace(s.ctx, request)
	found := s.refused("a workspace with a bad id", err, codes.InvalidArgument, "FIELD_INVALID")
	s.check("  names the field", found.fields, []string{"workspace_id"})
	_, err = s.devices.RegisterDevices(s.ctx, &authv1.RegisterDevicesRequest{
		WorkspaceId: s.workspace,
		Devices: []*authv1.DeviceRegistration{
			{DeviceId: s.device("charger-9"), ReferenceId: "user-9", Manufacturer: "voltway"},
		},
	})
	must(err)
}

// device names a device; ids are the whole service's.
func (s *story) device(id string) string { return id + "-" + s.name }

func (s *story) serverKey(name string) *authv1.CreateKeyResponse {
	made, err := s.keys.CreateKey(s.ctx, &authv1.CreateKeyRequest{
		WorkspaceId: s.workspace, Kind: authv1.KeyKind_KEY_KIND_SERVER, DisplayName: name,
	})
	must(err)
	return made
}

func (s *story) serverKeys() string {
	nightly, backend := s.serverKey("Nightly report"), s.serverKey("Backend").ApiKey
	charger := s.device("charger-9")
	s.question("server key 'Nightly report'", nightly.ApiKey, "devices:read", charger, nil, permitted)
	_, err := s.keys.RevokeKey(s.ctx, &authv1.RevokeKeyRequest{KeyId: nightly.Key.KeyId, Reason: "laptop lost"})
	must(err)
	s.question("  the same, revoked", nightly.ApiKey, "devices:read", charger, nil, revoked)
	s.question("server key 'Backend'", backend, "devices:read", charger, nil, permitted)
	s.question("server key 'Backend'", backend, "devices:read", s.device("charger-0"), nil, notFound)
	scope := s.question("server key 'Backend'", backend, "devices:list", "", nil, permitted).DeviceScope
	s.check("  the list may hold all of the workspace", scope.WorkspaceId+"/"+scope.ReferenceId, s.workspace+"/")
	question := &authv1.AuthorizeRequest{ApiKey: backend, Permission: "devices:command", DeviceId: charger}
	s.helper("  the helper of ten lines", question, true, 200)
	question.ApiKey = nightly.ApiKey
	s.helper("  and its no", question, false, 401)
	question.ApiKey, question.Context = s.serverKey("Leaked").ApiKey, browser
	s.helper("  and to a browser", question, false, 403)
	return backend
}

func (s *story) helper(what string, question *authv1.AuthorizeRequest, allowed bool, http int) {
	foundAllowed, foundHTTP := ask(s.ctx, s.auth, question)
	s.check(what, []any{foundAllowed, foundHTTP}, []any{allowed, http})
}

func (s *story) connectFlow() string {
	made, err := s.keys.CreateKey(s.ctx, &authv1.CreateKeyRequest{
		WorkspaceId: s.workspace, Kind: authv1.KeyKind_KEY_KIND_CONNECT, DisplayName: "Website",
		RedirectUris: []string{redirectURI},
	})
	must(err)
	website, who := made.ApiKey, "connect key 'Website'"
	for _, permission := range []string{"devices:list", "keys:manage", "workspace:configure"} {
		s.question(who, website, permission, "", nil, notGranted)
	}
	for _, permission := range []string{"devices:read", "devices:command"} {
		s.question(who, website, permission, s.device("charger-9"), nil, notGranted)
	}
	s.question(who, website, "connect_links:create", "", browser, permitted)
	_, err = s.connects.CreateConnectLink(s.ctx, &authv1.CreateConnectLinkRequest{
		ApiKey: website, RedirectUri: redirectURI, ReferenceId: "user-9",
	})
	s.refused("a link in somebody else's name", err, codes.PermissionDenied, "REFERENCE_ID_NOT_PERMITTED")
	link, err := s.connects.CreateConnectLink(s.ctx, &authv1.CreateConnectLinkRequest{
		ApiKey: website, RedirectUri: redirectURI, ClientState: "cart-17",
	})
	must(err)
	completion := &authv1.CompleteConnectLinkRequest{
		LinkToken: link.LinkToken,
		Devices:   []*authv1.ConnectedDevice{{DeviceId: s.device("battery-1"), Manufacturer: "heliovolt"}},
	}
	done, err := s.connects.CompleteConnectLink(s.ctx, completion)
	must(err)
	sentTo, err := url.Parse(done.RedirectUri)
	must(err)
	if want := (url.Values{
		"lang": {"en"}, "texture_scoped_key": {done.ScopedApiKey}, "client_state": {"cart-17"},
	}); !reflect.DeepEqual(sentTo.Query(), want) {
		must(fmt.Errorf("WRONG  where the end user is sent"))
	}
	_, err = s.connects.CompleteConnectLink(s.ctx, completion)
	s.refused("a link completed again", err, codes.FailedPrecondition, "CONNECT_LINK_COMPLETED")
	return done.ScopedApiKey
}

func (s *story) scopedKey(key string) {
	who, battery := "scoped key of the end user", s.device("battery-1")
	s.question(who, key, "devices:read", battery, nil, permitted)
	s.question(who, key, "devices:command", battery, nil, permitted)
	s.question(who, key, "devices:read", s.device("charger-9"), nil, notPermitted)
	s.question(who, key, "devices:read", "no-such-device", nil, notPermitted)
	s.question(who, key, "connect_links:create", "", nil, notGranted)
	scope := s.question(who, key, "devices:list", "", nil, permitted).DeviceScope
	listed, err := s.devices.ListDevices(s.ctx, &authv1.ListDevicesRequest{
		WorkspaceId: scope.WorkspaceId, ReferenceId: scope.ReferenceId,
	})
	must(err)
	var ids []string
	for _, device := range listed.Devices {
		ids = append(ids, device.DeviceId)
	}
	s.check("  a list with that scope", ids, []string{battery})
}

func (s *story) rotation() {
	old := s.serverKey("Rotated")
	rotated, err := s.keys.RotateKey(s.ctx, &authv1.RotateKeyRequest{
		KeyId: old.Key.KeyId, Overlap: durationpb.New(time.Hour),
	})
	must(err)
	s.question("rotated key, old secret", old.ApiKey, "devices:list", "", nil, permitted)
	s.question("rotated key, new secret", rotated.ApiKey, "devices:list", "", nil, permitted)
	_, err = s.keys.RotateKey(s.ctx, &authv1.RotateKeyRequest{KeyId: old.Key.KeyId, Overlap: durationpb.New(time.Hour)})
	s.refused("another rotation meanwhile", err, codes.FailedPrecondition, "ROTATION_IN_PROGRESS")
	_, err = s.keys.RetireGeneration(s.ctx, &authv1.RetireGenerationRequest{
		KeyId: old.Key.KeyId, Generation: 1, Force: true,
	})
	must(err)
	s.question("  old, ended", old.ApiKey, "devices:list", "", nil, retired)
	s.question("  new", rotated.ApiKey, "devices:list", "", nil, permitted)
}

func (s *story) batch(backend, scoped string) {
	charger := s.device("charger-9")
	answers, err := s.auth.BatchAuthorize(s.ctx, &authv1.BatchAuthorizeRequest{Questions: []*authv1.Question{
		{ApiKey: backend, Permission: "devices:read", DeviceId: charger},
		{ApiKey: scoped, Permission: "devices:read", DeviceId: charger},
		{ApiKey: backend, Permission: "devices:melt", DeviceId: charger},
	}})
	must(err)
	s.check("a batch: the first", answers.Answers[0].GetAnswer().GetReason(), permitted.reason)
	s.check("  the second", answers.Answers[1].GetAnswer().GetReason(), notPermitted.reason)
	s.check("  the third spoils no other", answers.Answers[2].GetError().GetReason(),
		authv1.ErrorReason_ERROR_REASON_FIELD_INVALID)
	_, err = s.auth.Authorize(s.ctx, &authv1.AuthorizeRequest{ApiKey: backend, Permission: "devices:melt"})
	found := s.refused("a permission that is none", err, codes.InvalidArgument, "FIELD_INVALID")
	s.check("  names the field", found.fields, []string{"permission"})
}

func (s *story) expiry() {
	made, err := s.keys.CreateKey(s.ctx, &authv1.CreateKeyRequest{
		WorkspaceId: s.workspace, Kind: authv1.KeyKind_KEY_KIND_SERVER, DisplayName: "Contractor",
		ExpireTime: timestamppb.New(time.Now().Add(3 * time.Second)),
	})
	must(err)
	answer := s.question("server key, 3 s to live", made.ApiKey, "devices:list", "", nil, permitted)
	s.check("  the answer says for how long", answer.ValidFor.AsDuration() <= 3*time.Second, true)
	time.Sleep(time.Until(made.Key.ExpireTime.AsTime()) + 50*time.Millisecond)
	s.question("  the same, later", made.ApiKey, "devices:list", "", nil, expired)
}

// leak shows a server key in a browser: it is denied and revoked, and what it did is known.
func (s *story) leak() {
	leaked, who, charger := s.serverKey("Pasted into a web page"), "server key 'Pasted into a web page'", s.device("charger-9")
	s.question(who+", in the backend", leaked.ApiKey, "devices:read", charger, nil, permitted)
	s.question("  in a browser", leaked.ApiKey, "devices:command", charger, browser, exposed)
	events := authv1.NewEventServiceClient(s.operator)
	// Who is told by this knows that it has been dealt with, too: it is one change.
	stream, err := events.WatchEvents(s.ctx, &authv1.WatchEventsRequest{
		WorkspaceId: s.workspace, Types: []string{"key.exposed"},
	})
	must(err)
	for told := false; !told; {
		received, err := stream.Recv()
		must(err)
		for _, logged := range received.Events {
			told = told || logged.Event.SubjectId == leaked.Key.KeyId
		}
	}
	s.question("  in the backend, from then on", leaked.ApiKey, "devices:read", charger, nil, revoked)
	touched, err := authv1.NewUsageServiceClient(s.operator).ListKeyDevices(s.ctx, &authv1.ListKeyDevicesRequest{
		KeyId: leaked.Key.KeyId,
	})
	must(err)
	s.check("the devices that it touched", touched.Touches[0].DeviceId, charger)
	verified, err := events.VerifyChain(s.ctx, &authv1.VerifyChainRequest{WorkspaceId: s.workspace})
	must(err)
	s.check("nobody has rewritten the log", verified.Broken == nil, true)
}

func (s *story) noKeys() {
	key := s.serverKey("Typed").ApiKey
	s.question("a key with a typing error", key[:len(key)-1]+"_", "devices:list", "", nil, malformed)
	s.question("no key", "", "devices:list", "", nil, missing)
}
