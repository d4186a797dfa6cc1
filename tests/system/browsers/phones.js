// What runs in the page: a phone of each library behind the same few functions.
// Both hand the media a silent track of their own, so that no microphone is asked for.
import JsSIP from "jssip";
import { Inviter, Messager, Registerer, RegistererState, SessionState, UserAgent, Web } from "sip.js";

function silence() {
  return new AudioContext().createMediaStreamDestination().stream;
}

// A list that can be waited on: what has happened, in order.
class Events {
  constructor() {
    this.all = [];
    this.waiting = [];
  }
  tell(name, detail = "") {
    this.all.push([name, String(detail)]);
    this.waiting = this.waiting.filter((look) => !look());
  }
  until(name, seconds = 8) {
    return new Promise((resolve, reject) => {
      const look = () => {
        const index = this.all.findIndex(([each]) => each === name);
        if (index < 0) return false;
        clearTimeout(late);
        resolve(this.all.splice(index, 1)[0][1]);
        return true;
      };
      const late = setTimeout(() => reject(new Error(`no ${name} among ${JSON.stringify(this.all)}`)), seconds * 1000);
      if (!look()) this.waiting.push(look);
    });
  }
}

class JsSipPhone {
  constructor({ server, uri, password }) {
    this.events = new Events();
    this.ua = new JsSIP.UA({ sockets: [new JsSIP.WebSocketInterface(server)], uri, password, register_expires: 120 });
    this.ua.on("registered", () => this.events.tell("registered"));
    this.ua.on("unregistered", () => this.events.tell("unregistered"));
    this.ua.on("registrationFailed", ({ cause }) => this.events.tell("refused", cause));
    this.ua.on("newMessage", ({ originator, request }) => {
      if (originator === "remote") this.events.tell("message", request.body);
    });
    this.ua.on("newRTCSession", ({ session }) => {
      this.session = session;
      session.on("progress", () => this.events.tell("ringing"));
      session.on("confirmed", () => this.events.tell("talking"));
      session.on("ended", ({ originator }) => this.events.tell("ended", originator));
      session.on("failed", ({ cause }) => this.events.tell("failed", cause));
    });
  }
  start() {
    this.ua.start();
  }
  message(to, text) {
    const told = (name) => (event) => this.events.tell(name, event.response ? event.response.status_code : event.cause);
    this.ua.sendMessage(to, text, { eventHandlers: { succeeded: told("sent"), failed: told("not sent") } });
  }
  call(to) {
    this.ua.call(to, { mediaStream: silence(), pcConfig: { iceServers: [] } });
  }
  answer() {
    this.session.answer({ mediaStream: silence(), pcConfig: { iceServers: [] } });
  }
  hangUp() {
    this.session.terminate();
  }
  stop() {
    this.ua.unregister({ all: false });
  }
}

class SipJsPhone {
  constructor({ server, uri, password }) {
    this.events = new Events();
    const parsed = UserAgent.makeURI(uri);
    this.ua = new UserAgent({
      uri: parsed,
      authorizationUsername: parsed.user,
      authorizationPassword: password,
      transportOptions: { server },
      logLevel: "error",
      sessionDescriptionHandlerFactory: Web.defaultSessionDescriptionHandlerFactory(async () => silence()),
      sessionDescriptionHandlerFactoryOptions: {
        iceGatheringTimeout: 300,
        peerConnectionConfiguration: { iceServers: [] },
      },
      delegate: {
        onMessage: async (message) => {
          this.events.tell("message", message.request.body);
          await message.accept();
        },
        onInvite: (invitation) => {
          this.follow(invitation);
          this.events.tell("ringing");
        },
      },
    });
    this.registerer = new Registerer(this.ua, { expires: 120 });
    this.registerer.stateChange.addListener((state) => {
      if (state === RegistererState.Registered) this.events.tell("registered");
      if (state === RegistererState.Unregistered) this.events.tell("unregistered");
    });
  }
  follow(session) {
    this.session = session;
    session.stateChange.addListener((state) => {
      if (state === SessionState.Established) this.events.tell("talking");
      if (state === SessionState.Terminated) this.events.tell("ended");
    });
  }
  async start() {
    await this.ua.start();
    await this.registerer.register({
      requestDelegate: { onReject: (response) => this.events.tell("refused", response.message.statusCode) },
    });
  }
  message(to, text) {
    const told = (name) => (response) => this.events.tell(name, response.message.statusCode);
    new Messager(this.ua, UserAgent.makeURI(to), text).message({
      requestDelegate: { onAccept: told("sent"), onReject: told("not sent") },
    });
  }
  async call(to) {
    const inviter = new Inviter(this.ua, UserAgent.makeURI(to));
    this.follow(inviter);
    await inviter.invite({ requestDelegate: { onProgress: () => this.events.tell("ringing") } });
  }
  answer() {
    return this.session.accept();
  }
  hangUp() {
    return this.session.state === SessionState.Established ? this.session.bye() : this.session.cancel();
  }
  stop() {
    return this.registerer.unregister();
  }
}

window.makePhone = (library, settings) => {
  window.phone = library === "jssip" ? new JsSipPhone(settings) : new SipJsPhone(settings);
};
