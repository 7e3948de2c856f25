//! From a plugin's traits to the contract's exports: the [`export!`](crate::export!) macro, and the
//! glue between the two, which keeps the plugin and its sessions. Nothing here is for plugins to
//! call.

use std::{any::Any, cell::RefCell, marker::PhantomData};

use crate::{
    Facts, Header, Message, Refusal, Report, State,
    bindings::exports::pointsman::plugin as contract,
    config,
    filter::{self, Filter, FilterSession},
    handler::{self, Handler, HandlerSession},
    policy::{self, Backend, Decision, Policy, Request},
};

/// Makes a type the plugin: `export!(TYPE: KIND)`, where the kind is `policy`, `handler` or `filter`,
/// followed by `+ state` if the type implements [`State`](crate::State) too. A crate that is more
/// than one kind of plugin says so once for each, with a type of its own each time.
///
/// On other targets than wasm this only checks that the type implements the traits.
#[macro_export]
macro_rules! export {
    (@policy $plugin:ty, $world:ident, $section:literal) => {
        const _: fn() = $crate::export::is_policy::<$plugin>;
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::export::Policies<$plugin>;
            $crate::__export_pointsman_plugin_policy_0_1_0_cabi!(
                Exported with_types_in $crate::bindings::exports::pointsman::plugin::policy
            );
            $crate::export!(@section $world, $section);
        };
    };
    (@handler $plugin:ty, $world:ident, $section:literal) => {
        const _: fn() = $crate::export::is_handler::<$plugin>;
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::export::Handlers<$plugin>;
            $crate::__export_pointsman_plugin_handler_0_1_0_cabi!(
                Exported with_types_in $crate::bindings::exports::pointsman::plugin::handler
            );
            $crate::export!(@section $world, $section);
        };
    };
    (@filter $plugin:ty, $world:ident, $section:literal) => {
        const _: fn() = $crate::export::is_filter::<$plugin>;
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::export::Filters<$plugin>;
            $crate::__export_pointsman_plugin_filter_0_1_0_cabi!(
                Exported with_types_in $crate::bindings::exports::pointsman::plugin::filter
            );
            $crate::export!(@section $world, $section);
        };
    };
    (@state $plugin:ty) => {
        const _: fn() = $crate::export::is_state::<$plugin>;
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::export::States<$plugin>;
            $crate::__export_pointsman_plugin_state_0_1_0_cabi!(
                Exported with_types_in $crate::bindings::exports::pointsman::plugin::state
            );
        };
    };
    // The section has to be in the plugin's own crate: the linker takes a library's objects only
    // where a symbol is missing, and nothing refers to a section. The same goes for the allocator.
    (@section $world:ident, $section:literal) => {
        #[unsafe(link_section = $section)]
        static SECTION: [u8; $crate::bindings::$world.len()] = *$crate::bindings::$world;
        #[used]
        static ALLOCATOR: fn() = $crate::export::link_allocator;
    };

    ($plugin:ty: policy) => {
        $crate::export!(@policy $plugin, POLICY, "component-type:pointsman:policy");
    };
    ($plugin:ty: policy + state) => {
        $crate::export!(@policy $plugin, STATEFUL_POLICY, "component-type:pointsman:policy");
        $crate::export!(@state $plugin);
    };
    ($plugin:ty: handler) => {
        $crate::export!(@handler $plugin, HANDLER, "component-type:pointsman:handler");
    };
    ($plugin:ty: handler + state) => {
        $crate::export!(@handler $plugin, STATEFUL_HANDLER, "component-type:pointsman:handler");
        $crate::export!(@state $plugin);
    };
    ($plugin:ty: filter) => {
        $crate::export!(@filter $plugin, FILTER, "component-type:pointsman:filter");
    };
    ($plugin:ty: filter + state) => {
        $crate::export!(@filter $plugin, STATEFUL_FILTER, "component-type:pointsman:filter");
        $crate::export!(@state $plugin);
    };
}

/// Compiles for policies only.
pub fn is_policy<P: Policy>() {}

/// Compiles for handlers only.
pub fn is_handler<H: Handler>() {}

/// Compiles for filters only.
pub fn is_filter<F: Filter>() {}

/// Compiles for plugins with state only.
pub fn is_state<S: State>() {}

/// Makes the linker take the function with which the host allocates a call's arguments.
pub fn link_allocator() {
    wit_bindgen::rt::maybe_link_cabi_realloc();
}

thread_local! {
    /// The plugins of this instance, after `configure`: one, unless the crate exports several.
    static PLUGINS: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Keeps a plugin for the calls to come.
fn keep<P: 'static>(plugin: P) {
    PLUGINS.with_borrow_mut(|plugins| {
        plugins.retain(|kept| !kept.is::<P>());
        plugins.push(Box::new(plugin));
    });
}

/// Calls into the plugin that was kept. The contract lets no call in while another is under way, so
/// the borrow cannot fail.
fn with<P: 'static, R>(call: impl FnOnce(&mut P) -> R) -> R {
    PLUGINS.with_borrow_mut(|plugins| {
        let plugin = plugins.iter_mut().find_map(|kept| kept.downcast_mut());
        call(plugin.expect("the host calls `configure` before anything else"))
    })
}

/// Exports a [`Policy`].
#[derive(Debug)]
pub struct Policies<P>(PhantomData<P>);

impl<P: Policy> contract::policy::Guest for Policies<P> {
    fn configure(config: String) -> Result<policy::Wants, String> {
        let policy = P::configure(config::read(&config)?)?;
        let wants = policy.wants();
        keep(policy);
        Ok(wants)
    }

    fn backends_changed(backends: Vec<Backend>) {
        with(|policy: &mut P| policy.backends_changed(&backends));
    }

    fn choose(request: Request) -> Decision {
        with(|policy: &mut P| policy.choose(&request))
    }

    fn placed(request: Request, backend: u32) -> Vec<Header> {
        with(|policy: &mut P| policy.placed(&request, backend))
    }

    fn session_ended(backend: String, report: Report) {
        with(|policy: &mut P| policy.session_ended(&backend, &report));
    }
}

/// Exports a [`Handler`].
#[derive(Debug)]
pub struct Handlers<H>(PhantomData<H>);

impl<H: Handler> contract::handler::Guest for Handlers<H> {
    type Session = HandlerSessions<H>;

    fn configure(config: String) -> Result<handler::Wants, String> {
        let handler = H::configure(config::read(&config)?)?;
        let wants = handler.wants();
        keep(handler);
        Ok(wants)
    }

    fn accept(facts: Facts) -> Result<Option<String>, Refusal> {
        with(|handler: &mut H| handler.accept(&facts))
    }
}

/// Exports the sessions of a [`Handler`].
#[derive(Debug)]
pub struct HandlerSessions<H: Handler>(RefCell<H::Session>);

impl<H: Handler> contract::handler::GuestSession for HandlerSessions<H> {
    fn new(facts: Facts) -> Self {
        Self(RefCell::new(with(|handler: &mut H| handler.open(facts))))
    }

    fn interest(&self) -> handler::Interest {
        self.0.borrow().interest()
    }

    fn tick_interval_ms(&self) -> u32 {
        self.0.borrow().tick_interval_ms()
    }

    fn opened(&self) -> handler::Verdict {
        self.0.borrow_mut().opened()
    }

    fn message(&self, message: Message) -> handler::Verdict {
        self.0.borrow_mut().message(message)
    }

    fn tick(&self) -> handler::Verdict {
        self.0.borrow_mut().tick()
    }

    fn closed(&self, report: Report) {
        self.0.borrow_mut().closed(&report);
    }
}

/// Exports a [`Filter`].
#[derive(Debug)]
pub struct Filters<F>(PhantomData<F>);

impl<F: Filter> contract::filter::Guest for Filters<F> {
    type Session = FilterSessions<F>;

    fn configure(config: String) -> Result<filter::Wants, String> {
        let filter = F::configure(config::read(&config)?)?;
        let wants = filter.wants();
        keep(filter);
        Ok(wants)
    }

    fn accept(facts: Facts) -> Result<filter::Admission, Refusal> {
        with(|filter: &mut F| filter.accept(&facts))
    }
}

/// Exports the sessions of a [`Filter`].
#[derive(Debug)]
pub struct FilterSessions<F: Filter>(RefCell<F::Session>);

impl<F: Filter> contract::filter::GuestSession for FilterSessions<F> {
    fn new(facts: Facts) -> Self {
        Self(RefCell::new(with(|filter: &mut F| filter.open(facts))))
    }

    fn interest(&self) -> filter::Interest {
        self.0.borrow().interest()
    }

    fn tick_interval_ms(&self) -> u32 {
        self.0.borrow().tick_interval_ms()
    }

    fn message(&self, from: filter::Direction, message: Message) -> filter::Verdict {
        self.0.borrow_mut().message(from, message)
    }

    fn tick(&self) -> filter::Verdict {
        self.0.borrow_mut().tick()
    }

    fn closed(&self, report: Report) {
        self.0.borrow_mut().closed(&report);
    }
}

/// Exports a [`State`].
#[derive(Debug)]
pub struct States<S>(PhantomData<S>);

impl<S: State + 'static> contract::state::Guest for States<S> {
    fn version() -> u32 {
        S::VERSION
    }

    fn save() -> Vec<u8> {
        with(|plugin: &mut S| plugin.save())
    }

    fn restore(saved: Vec<u8>, from_version: u32) -> Result<(), String> {
        with(|plugin: &mut S| plugin.restore(&saved, from_version))
    }
}
