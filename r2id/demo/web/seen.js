// Triggers "seen" once for every new value, while the element is on the screen: what nobody looks at costs nothing.
let seen = false, done = null;
const look = () => { if (seen && props.value && done !== props.value) { done = props.value; trigger("seen"); } };
new IntersectionObserver(([entry]) => { seen = entry.isIntersecting; look(); }).observe(element);
watch("value", look);
