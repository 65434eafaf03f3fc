// The few types of React that react.ts needs, so that the build installs nothing else.
declare module "react" {
  export function useCallback<T>(callback: T, inputs: readonly unknown[]): T;
  export function useEffect(effect: () => (() => void) | void, inputs: readonly unknown[]): void;
  export function useRef<T>(initial: T): { current: T };
  export function useState<T>(initial: T): [T, (value: T) => void];
}
