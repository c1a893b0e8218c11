import com.texture.auth.v1.AuthorizeRequest;
import com.texture.auth.v1.AuthorizeServiceGrpc;
import com.texture.auth.v1.AuthorizeServiceGrpc.AuthorizeServiceBlockingStub;
import com.texture.auth.v1.Decision;
import com.texture.auth.v1.RequestContext;
import io.grpc.Grpc;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;

/** A service in Java that asks Texture Auth about the devices that its arguments name, and prints the answers. */
final class Ask {
    // README: begin
    record Answer(boolean allowed, int http) {}

    /** Says whether the holder of an API key may do this, and what a public API should answer with. No answer is a no. */
    static Answer ask(AuthorizeServiceBlockingStub auth, AuthorizeRequest question) {
        try {
            var answer = auth.withDeadlineAfter(1, TimeUnit.SECONDS).authorize(question);
            if (answer.getDecision() == Decision.DECISION_ALLOW) return new Answer(true, 200);
            if (answer.getDecision() == Decision.DECISION_DENY) return new Answer(false, answer.getHttpStatusCode());
        } catch (StatusRuntimeException error) {
            // Nothing was decided: log it, without the key.
        }
        return new Answer(false, 503);
    }
    // README: end

    public static void main(String[] devices) throws Exception {
        var credentials = TlsChannelCredentials.newBuilder().trustManager(new File(setting("CA"))).build();
        ManagedChannel channel = Grpc.newChannelBuilder(setting("CALLER_ADDRESS"), credentials).build();
        var headers = new Metadata();
        var key = Files.readString(Path.of(setting("CALLER_KEY_FILE"))).strip();
        headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + key);
        var auth = AuthorizeServiceGrpc.newBlockingStub(channel)
                .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers));
        // The first question waits until there is a connection, which on a cold machine takes more than its second.
        var question = AuthorizeRequest.newBuilder().setApiKey(setting("API_KEY")).setPermission("devices:read")
                .setContext(RequestContext.newBuilder().setClientIp("198.51.100.7"));
        for (var waited = 0; ask(auth, question.setDeviceId("no-such-device").build()).http() == 503 && waited < 30; waited++) Thread.sleep(100);
        for (var device : devices) {
            var answer = ask(auth, question.setDeviceId(device).build());
            System.out.println(device + " " + answer.allowed() + " " + answer.http());
        }
        channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }

    private static String setting(String name) {
        var value = System.getenv(name);
        if (value == null) throw new IllegalStateException(name + " is not set");
        return value;
    }

    private Ask() {}
}
